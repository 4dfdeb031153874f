"""What the ten small sets of PCoreSet share."""

from limbeck.multimodal.vlm.configs._base_.paper import ADAMW as _ADAMW
from limbeck.multimodal.vlm.configs._base_.paper import linear as _linear

task = "vlm-classification"
benchmark_version = 1
adapter = dict(type="VLMAdapter")
metric = dict(type="DualHeadMetric")
# Ten epochs of a tenth of the round's updates each, so that warm-up is a tenth of them.
recipe = dict(epochs=10, optimizer=_ADAMW, param_scheduler=_linear(10))
teacher_recipe = dict(epochs=0)
loop = dict(type="ActiveLearning", strategy=dict(type="Random"), rounds=15, passes=200)
