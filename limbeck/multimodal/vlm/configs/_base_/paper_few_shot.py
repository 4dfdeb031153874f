"""What the ten small sets of DHO share."""

from limbeck.multimodal.vlm.configs._base_.paper import ADAMW as _ADAMW
from limbeck.multimodal.vlm.configs._base_.paper import linear as _linear

task = "vlm-classification"
benchmark_version = 1
adapter = dict(type="VLMAdapter", search=True)
metric = dict(type="DualHeadMetric")
recipe = dict(epochs=200, optimizer=_ADAMW, param_scheduler=_linear(200), selection="best_val", val_interval=1)
teacher_recipe = dict(epochs=0)
