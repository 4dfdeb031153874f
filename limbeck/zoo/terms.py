"""What cards say of data sets: licence, source, intended use and limits; students of other data are not published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DataTerms:
    """What a card says of a data set.

    note: what the values of an input mean, and how it is brought to the network.
    """

    licence: str
    source: str
    note: str
    use: str
    limits: str


DATA_TERMS: Mapping[str, DataTerms] = {
    "digits": DataTerms(
        licence="CC-BY-4.0",
        source="scikit-learn's copy of the UCI data set Optical Recognition of Handwritten Digits",
        note="white on black",
        use="Recognising one handwritten digit of 8 × 8 grey pixels; teaching, tests, and comparing methods.",
        limits="Knows single centred digits, light strokes on black; any other image gets one of ten labels too.",
    ),
    "fashion-mnist": DataTerms(
        licence="MIT",
        source="Fashion-MNIST (arXiv 1708.07747)",
        note="white on black",
        use="Recognising one piece of clothing of 28 × 28 grey pixels; teaching, tests, and comparing methods.",
        limits="Knows single centred product pictures of ten kinds, light on black; any other image gets a label too.",
    ),
    "cifar10-jpeg": DataTerms(
        licence="none stated; published by its authors for research",
        source="a JPEG copy (quality about 75) of CIFAR-10 (Krizhevsky 2009)",
        note="RGB",
        use="Recognising one object of ten kinds in 32 × 32 pixels; teaching, tests, and comparing methods.",
        limits="Saw JPEG images only, so figures do not compare with CIFAR-10's; any other image gets a label too.",
    ),
    "cifar10": DataTerms(
        licence="none stated; published by its authors for research",
        source="CIFAR-10 (Krizhevsky 2009)",
        note="RGB",
        use="Recognising one object of ten kinds in 32 × 32 pixels; teaching, tests, and comparing methods.",
        limits="Knows ten kinds of animals and vehicles, one an image; any other image gets one of ten labels too.",
    ),
    "cifar100": DataTerms(
        licence="none stated; published by its authors for research",
        source="CIFAR-100 (Krizhevsky 2009), fine labels",
        note="RGB",
        use="Recognising one object of a hundred kinds in 32 × 32 pixels; teaching, tests, and comparing methods.",
        limits="Knows a hundred kinds of things, one an image; any other image gets one of these labels too.",
    ),
    "flowers5": DataTerms(
        licence="none stated; photographs from Flickr under Creative Commons licences chosen by each photographer",
        source="five flower classes of the public Flickr flower collections",
        note="RGB, squeezed to a square",
        use="Recognising daisy, dandelion, rose, sunflower or tulip in a photograph; teaching, and comparing methods.",
        limits="A few per cent of the training labels are wrong; any other image gets one of five labels too.",
    ),
    "dtd10": DataTerms(
        licence="none stated; DTD's authors release it for research",
        source="ten classes of the Describable Textures Dataset (arXiv 1311.3618)",
        note="RGB",
        use="Telling ten kinds of texture apart in a photograph; teaching, and comparing methods.",
        limits="The classes overlap in meaning and the split is not DTD's; any other image gets one of ten labels too.",
    ),
    "tiny-imagenet": DataTerms(
        licence="none stated; ImageNet terms: non-commercial research and education only",
        source="Tiny ImageNet, 200 classes of ImageNet (arXiv 1409.0575) at 64 × 64",
        note="RGB",
        use="Recognising one object of 200 kinds in 64 × 64 pixels; comparing methods.",
        limits="Knows 200 kinds of things, one an image; any other image gets one of these labels too.",
    ),
    "imagenet": DataTerms(
        licence="ImageNet terms: non-commercial research and education only",
        source="ImageNet-1k, ILSVRC 2012 (arXiv 1409.0575)",
        note="RGB",
        use="Recognising the main object of a photograph among 1,000 kinds; comparing methods.",
        limits="Knows ImageNet's 1,000 kinds, with the biases of its photographs; any other image gets a label too.",
    ),
    "bccd": DataTerms(
        licence="MIT",
        source="BCCD, microscope images of blood cells",
        note="RGB; the whole image is resized, and boxes are brought back to the image's size",
        use="Finding red cells, white cells and platelets in a blood smear; teaching, and comparing methods.",
        limits="No medical device; red cells are not all annotated, so it misses some; other images get boxes too.",
    ),
    "digit-scenes-boxes": DataTerms(
        licence="CC-BY-4.0",
        source="scenes made from scikit-learn's copy of the UCI data set Optical Recognition of Handwritten Digits",
        note="RGB; the whole image is resized, and boxes are brought back to the image's size",
        use="Finding handwritten digits over textures; teaching, tests, and comparing methods.",
        limits="Knows made-up scenes of 8 × 8 digits; any other image gets boxes too.",
    ),
    "coco2017": DataTerms(
        licence="annotations CC-BY-4.0; photographs from Flickr under terms chosen by each photographer",
        source="COCO 2017 (arXiv 1405.0312)",
        note="RGB",
        use="Finding objects of 80 kinds in photographs; comparing methods.",
        limits="Knows 80 kinds of things; whatever else is in an image is passed over or taken for one of them.",
    ),
    "voc0712": DataTerms(
        licence="none stated; photographs from Flickr under terms chosen by each photographer",
        source="PASCAL VOC 2007 and 2012",
        note="RGB",
        use="Finding objects of 20 kinds in photographs; comparing methods.",
        limits="Knows 20 kinds of things; whatever else is in an image is passed over or taken for one of them.",
    ),
    "camvid": DataTerms(
        licence="CC BY-NC 4.0, personal and research use only",
        source="CamVid (Brostow et al. 2009), the 11-class 480 × 360 version of SegNet's tutorial",
        note="RGB; the whole image is resized, and the class map brought back to the image's size by nearest",
        use="Labelling the pixels of a road scene with one of 11 classes; research, teaching, and comparing methods.",
        limits="Knows scenes of Cambridge by day and at dusk, seen from a car; figures at a smaller size (240 × 180, "
        "192 × 144) do not compare with those at full size; every pixel of any other image gets one of 11 labels too.",
    ),
    "digit-scenes": DataTerms(
        licence="CC-BY-4.0",
        source="digits of scikit-learn's copy of the UCI data set Optical Recognition of Handwritten Digits, "
        "over textures that this package draws",
        note="RGB; the whole image is resized, and the class map brought back to the image's size by nearest",
        use="Finding the pixels of handwritten digits in small made-up scenes; teaching, tests, and comparing methods.",
        limits="Knows drawn scenes only; every pixel of any other image gets one of 11 labels too.",
    ),
    "lidar-scenes": DataTerms(
        licence="Apache-2.0",
        source="LiDAR scenes that this package simulates, laid out as KITTI's",
        note="what a camera in front shows of a 64-beam LiDAR 1.73 m above the road; reflectance from 0 to 1",
        use="Finding cars, cyclists and pedestrians in LiDAR clouds; teaching, tests, and comparing methods.",
        limits="Knows simulated scenes of simple shapes: not for driving, and figures say nothing of real streets; "
        "other clouds get boxes too.",
    ),
    "kitti": DataTerms(
        licence="CC BY-NC-SA 3.0, no commercial use",
        source="KITTI 3D object detection (Geiger et al. 2012)",
        note="what a camera in front shows of a 64-beam LiDAR 1.73 m above the road; reflectance from 0 to 1",
        use="Finding cars, cyclists and pedestrians in LiDAR clouds; research, teaching, and comparing methods.",
        limits="Knows streets of Karlsruhe by day, seen by one sensor: not for driving; other clouds get boxes too.",
    ),
    "kitti-frames": DataTerms(
        licence="CC BY-NC-SA 3.0, no commercial use",
        source="25 frames of KITTI 3D object detection (Geiger et al. 2012)",
        note="what a camera in front shows of a 64-beam LiDAR 1.73 m above the road; reflectance from 0 to 1",
        use="Showing that training on real LiDAR frames works; teaching and tests.",
        limits="Has seen a dozen frames: its figures rank nothing, and it is not for driving.",
    ),
}

# Use and limits of students that make images like those of a data set.
GENERATION_TERMS: Mapping[str, tuple[str, str]] = {
    "digits": (
        "Making handwritten digits of 8 × 8 grey pixels; teaching, tests, and comparing methods.",
        "Makes digits of ten kinds like those that it was trained on, and not always of the class that was asked for.",
    ),
    "fashion-mnist": (
        "Making small pictures of clothing, 28 × 28 grey pixels or fewer; teaching, tests, and comparing methods.",
        "Makes ten kinds of clothing like those that it was trained on, and not always the one that was asked for.",
    ),
}
