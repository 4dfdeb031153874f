"""ImageNet, paper tier: SENet-154 and ResNet-152s teach a trained ResNet-50 by MEAL V2; published: 80.67 %.

The student starts from its ImageNet weights and sees no hard label (arXiv 2009.08453).
"""

_base_ = ["./_base_/imagenet.py"]

pair = "senet154-resnet152s-resnet50"
title = "ImageNet: SENet-154 and ResNet-152s → ResNet-50"
data = dict(batch_size=512)
teacher = dict(model="senet154.gluon_in1k")
teachers = dict(
    resnet152s=dict(model=dict(type="timm", model="resnet152s.gluon_in1k", num_classes=1000, pretrained=True))
)
student = dict(model="resnet50.tv_in1k", pretrained=True)
recipe = dict(
    epochs=180,
    optimizer=dict(lr=0.01, weight_decay=0.0),
    param_scheduler=[dict(type="MultiStepLR", milestones=[100], gamma=0.1)],
)

methods = dict(
    MEALV2=dict(task_weight=0.0, links=[dict(type="MEALV2", teacher=["teacher", "resnet152s"], adversary="code")])
)

reported = dict(MEALV2=80.67)
reported_source = "arXiv 2009.08453 (read-me of its code, 224 pixels, 180 epochs)"
