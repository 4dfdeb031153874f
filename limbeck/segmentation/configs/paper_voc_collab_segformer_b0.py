"""PASCAL VOC 2012, paper tier: DeepLabV3-MobileNetV2 and SegFormer-B0 teach each other; the transformer's records.

After Zhu et al. (ICCV 2023, arXiv 2307.12574), whose figures could not be read, so none is printed.
"""

from limbeck.segmentation.configs._base_ import paper_collab as _collab

_base_ = ["./_base_/paper_voc.py"]

pair = "deeplabv3_mobilenetv2-segformer_b0"
title = "PASCAL VOC 2012: DeepLabV3-MobileNetV2 ⇄ SegFormer-B0"
teacher = dict(config=_collab.cnn())
student = dict(config=_collab.vit(), pretrained_backbone=False)
recipe = dict(_delete_=True, **_collab.recipe(64, _collab.ADAMW))
teacher_recipe = _collab.recipe(64, _collab.SGD)
methods = dict(CNNViTCollab=dict(same_run_as="segmentation/paper_voc_collab_mobilenetv2"))
