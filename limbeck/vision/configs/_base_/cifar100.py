"""The recipe and the methods of the CIFAR-100 tables (arXiv 1910.10699, 2203.08679), for two nets of three stages.

A pair's own file adds teacher, student and the weights that its authors chose for it. Differences from the code bases:
5,000 of the 50,000 training images are held out as val, and the last epoch is taken, not the best on test. KD++ and
DKD++ follow the pair's recipe, where their authors start at 0.1 (0.02 for ShuffleNets) with Nesterov momentum, and the
temperature and weight of +LS are the same for all pairs, where its authors tuned some.
"""

task = "image-classification"
benchmark = "cifar100"
benchmark_version = 1

data = dict(
    train=dict(type="CIFAR100", split="train", augment=dict(pad=4, flip=True), views=0),
    val=dict(type="CIFAR100", split="val"),
    test=dict(type="CIFAR100", split="test"),
    batch_size=64,
)
adapter = dict(type="VisionAdapter")
metric = dict(type="ClassificationMetric")

_shape = dict(num_classes=100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), input_size=(3, 32, 32))
teacher = dict(**_shape)
student = dict(**_shape)

recipe = dict(
    epochs=240,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4),
    param_scheduler=[dict(type="MultiStepLR", milestones=[150, 180, 210], gamma=0.1)],
)
teacher_recipe = dict(recipe)

methods = {
    "KD": dict(task_weight=0.1, links=[dict(type="KD", weight=0.9, temperature=4.0)]),
    "KD+LS": dict(task_weight=0.1, links=[dict(type="KD", weight=9.0, temperature=2.0, standardise=True)]),
    "DIST": dict(links=[dict(type="DIST", weight=2.0, temperature=4.0)]),
    "FitNet": dict(links=[dict(type="FitNet", weight=100.0)]),
    "AT": dict(links=[dict(type="AT", weight=1000.0)]),
    "RKD": dict(links=[dict(type="RKD", distance=25.0, angle=50.0)]),
    "SPKD": dict(links=[dict(type="SPKD", weight=3000.0)]),
    "VID": dict(links=[dict(type="VID", weight=1.0)]),
    "OFD": dict(links=[dict(type="OFD", weight=1e-3)]),
    "CRD": dict(links=[dict(type="CRD", negatives=16384, weight=0.8)]),
    "SimKD": dict(
        task_weight=0.0,
        student=dict(type="SimKDStudent", num_classes=100, student=dict(**_shape)),
        links=[dict(type="SimKD")],
    ),
}
