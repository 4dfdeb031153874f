"""Methods for a teacher and a student of one family of CIFAR ResNets, as `digits` and `fashion_mnist` compare them.

Weights: the authors', or ours where they give none for images (SinKD, TRG), times the factor of at most 1 that did
best on the validation split of digits (benchmarks/selection/digits.json); fashion_mnist takes them over untouched.
KD+ND keeps KD's 0.1 on cross entropy, which KD++ has at 1. Where a method has a cross entropy of its own, the factor
scales the whole loss.
"""

_kd = dict(type="KD", weight=0.9, temperature=4.0)

methods: dict = dict(
    KD=dict(task_weight=0.1, links=[_kd]),
    DKD=dict(
        links=[
            dict(type="DKD", weight=1.0, alpha=1.0, beta=8.0, temperature=4.0, schedule=dict(type="warmup", end=0.1))
        ]
    ),
    DIST=dict(links=[dict(type="DIST", weight=0.2, temperature=4.0)]),
    FitNet=dict(links=[dict(type="FitNet", weight=1.0)]),
    AT=dict(links=[dict(type="AT", weight=1.0)]),
    SPKD=dict(links=[dict(type="SPKD", weight=300.0)]),
)
# Logits
methods["KD+LS"] = dict(task_weight=0.1, links=[dict(type="KD", weight=9.0, temperature=2.0, standardise=True)])
methods["SinKD"] = dict(task_weight=0.1, links=[_kd, dict(type="SinKD", weight=0.01)])
methods["BDKD"] = dict(links=[dict(type="BDKD", weight=0.1)])
methods["MixupKD"] = dict(task_weight=0.0, cache=False, links=[dict(type="MixupKD", weight=1.0)])
methods["TGeoKD"] = dict(task_weight=0.0, links=[dict(type="TGeoKD", weight=1.0)])
methods["OFAKD"] = dict(links=[dict(type="OFAKD", weight=1.0, epsilon=1.0)])
# Features
methods["RKD"] = dict(links=[dict(type="RKD", weight=0.01)])
methods["VID"] = dict(links=[dict(type="VID", weight=1.0)])
methods["OFD"] = dict(links=[dict(type="OFD", weight=0.00001)])
methods["ReviewKD"] = dict(links=[dict(type="ReviewKD", weight=1.0, schedule=dict(type="warmup", end=0.1))])
methods["CRD"] = dict(links=[dict(type="CRD", weight=0.0008, negatives=512)])
methods["ND"] = dict(links=[dict(type="ND", weight=0.02)])
methods["KD+ND"] = dict(task_weight=0.1, links=[_kd, dict(type="ND", weight=2.0)])
methods["TRG"] = dict(task_weight=0.1, links=[_kd, dict(type="TRG", weight=0.01)])
