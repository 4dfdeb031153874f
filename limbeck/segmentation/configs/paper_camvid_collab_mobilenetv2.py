"""CamVid, paper tier: SegFormer-B0 and DeepLabV3-MobileNetV2 teach each other; the CNN's records.

After Zhu et al. (ICCV 2023, arXiv 2307.12574), whose figures could not be read, so none is printed.
"""

from limbeck.segmentation.configs._base_ import paper_collab as _collab

_base_ = ["./_base_/paper_camvid.py"]

pair = "segformer_b0-deeplabv3_mobilenetv2"
title = "CamVid: SegFormer-B0 ⇄ DeepLabV3-MobileNetV2"
teacher = dict(config=_collab.vit(), pretrained_backbone=False)
student = dict(config=_collab.cnn())
recipe = dict(_delete_=True, **_collab.recipe(1819, _collab.SGD))
teacher_recipe = _collab.recipe(1819, _collab.ADAMW)
methods = dict(CNNViTCollab=_collab.exchange("deeplabv3_mobilenetv2-segformer_b0"))
