"""Model packages: what a manifest may say, how a wrong one is told, and which version is found."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edge_agent import models
from shared import manifests
from shared.manifests import alphabet
from tests import models as packages

HEAD = 'name = "m"\nversion = "1"\n'
IMAGE = '[[inputs]]\nname = "x"\nkind = "image"\nwidth = 4\nheight = 3\ncolour = "rgb"\n'
DETECTION = '[[outputs]]\nname = "y"\nkind = "detection"\nlabels = ["a", "b"]\nrow = "box"\nbox = "xyxy"\n'
CTC = '[[outputs]]\nname = "y"\nkind = "ctc"\ndictionary = "letters.txt"\n'
RAW = '[[outputs]]\nname = "y"\nkind = "raw"\n'
WHERE = Path("models/m/model.toml")


def parsed(text: str) -> manifests.Manifest:
    return manifests.parse(text, WHERE)


def test_a_manifest_has_sensible_defaults() -> None:
    """What is left out means: pixels as they are, no waiting for a batch, the best provider there is."""
    manifest = parsed(HEAD + IMAGE + RAW)
    (image,) = manifest.inputs
    assert isinstance(image, manifests.ImageInput)
    assert image.is_identity
    assert (image.layout, image.dtype, image.shape) == ("nchw", "float32", (3, 3, 4))
    assert manifest.file == "model.onnx"
    assert manifest.batching.max_delay_ms == 0
    assert manifest.providers.order == ("tensorrt", "cuda", "cpu")
    assert manifest.limits.max_pixels == 4096 * 4096


@pytest.mark.parametrize(
    ("more", "least", "usual", "most"),
    [
        ("", (3, 32, 64), (3, 32, 64), (3, 32, 64)),
        ('resize = "fit"', (3, 32, 64), (3, 32, 64), (3, 32, 64)),
        ('resize = "fit"\nmultiple_of = 16', (3, 16, 16), (3, 32, 64), (3, 32, 64)),
        ('resize = "height"\nmax_width = 320', (3, 32, 64), (3, 32, 64), (3, 32, 320)),
        ('resize = "height"\nmax_width = 64', (3, 32, 64), (3, 32, 64), (3, 32, 64)),
        ('resize = "fit"\nmultiple_of = 16\nlayout = "nhwc"', (16, 16, 3), (32, 64, 3), (32, 64, 3)),
    ],
)
def test_an_input_knows_between_which_sizes_it_varies(
    more: str, least: tuple[int, ...], usual: tuple[int, ...], most: tuple[int, ...]
) -> None:
    """Only where the size depends on the picture do the smallest and the largest shape differ."""
    text = IMAGE.replace("width = 4", "width = 64").replace("height = 3", "height = 32")
    manifest = parsed(HEAD + text + more + "\n" + RAW)
    (image,) = manifest.inputs
    assert (image.least, image.shape, image.most) == (least, usual, most)
    assert image.varies == manifest.varies == (least != most)


def test_a_manifest_says_which_tensors_are_read() -> None:
    """Those of all its outputs, each once, in their order: some outputs read several."""
    boxes = DETECTION + 'scores = "s"\nclasses = "c"\n'
    assert parsed(HEAD + IMAGE + boxes + RAW.replace('"y"', '"s"')).tensors == ("y", "s", "c")


def test_the_layout_orders_the_shape() -> None:
    """nhwc puts the channels last."""
    (image,) = parsed(HEAD + IMAGE + 'layout = "nhwc"\n' + RAW).inputs
    assert image.shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (HEAD + IMAGE.replace("width = 4\n", "") + RAW, ("inputs[0]", "`width`", "add it")),
        (HEAD + IMAGE + "colr = 1\n" + RAW, ("inputs[0]", "`colr`", "correct its name, or remove it")),
        (HEAD + IMAGE.replace("width = 4", "width = 0") + RAW, ("inputs[0].width", ">= 1")),
        (HEAD + IMAGE.replace("rgb", "cmyk") + RAW, ("inputs[0].colour", "cmyk", "grey, rgb, bgr")),
        (HEAD + IMAGE.replace("image", "video") + RAW, ("inputs[0].kind", "video", "image, tensor")),
        (HEAD + IMAGE + "mean = [0.1, 0.2]\n" + RAW, ("inputs[0]", "`mean` has 2 numbers", "1 or 3")),
        (HEAD + IMAGE + "std = [0.0]\n" + RAW, ("inputs[0]", "`std`", "0 is not allowed")),
        (HEAD + IMAGE + 'dtype = "uint8"\nscale = 0.5\n' + RAW, ("inputs[0]", "dtype uint8", "remove")),
        (HEAD + IMAGE + 'resize = "fill"\n' + RAW, ("inputs[0].resize", "fill", "stretch, fit, height")),
        (HEAD + IMAGE + "pad = [1]\n" + RAW, ("inputs[0]", "`pad` has nothing to fill", "remove it")),
        (HEAD + IMAGE + "pad = [1, 2]\n" + RAW, ("inputs[0]", "`pad` has 2 numbers", "1 or 3")),
        (HEAD + IMAGE + "pad = [256]\n" + RAW, ("inputs[0].pad[0]", "<= 255")),
        (
            HEAD + IMAGE + 'resize = "fit"\ndtype = "uint8"\npad = [0.5]\n' + RAW,
            ("inputs[0]", "`pad` takes whole numbers for dtype uint8"),
        ),
        (HEAD + IMAGE + 'place = "centre"\n' + RAW, ("inputs[0]", '`place` goes with resize = "fit"')),
        (HEAD + IMAGE + "multiple_of = 2\n" + RAW, ("`multiple_of` goes with", '"fit" or resize = "height"')),
        (
            HEAD + IMAGE + 'resize = "fit"\nmax_width = 9\n' + RAW,
            ("`max_width` goes with", "change `resize`"),
        ),
        (HEAD + IMAGE + 'resize = "height"\n' + RAW, ("inputs[0]", "`max_width` is missing", "add it")),
        (
            HEAD + IMAGE + 'resize = "height"\nmax_width = 3\n' + RAW,
            ("`max_width` is 3", "at least `width`, 4"),
        ),
        (HEAD + IMAGE + 'resize = "fit"\nmultiple_of = 2\n' + RAW, ("`height` must be a multiple of 2",)),
        (
            HEAD + IMAGE + 'resize = "height"\nmax_width = 9\nmultiple_of = 2\n' + RAW,
            ("`max_width` must be a multiple of 2",),
        ),
        (
            HEAD + IMAGE + 'resize = "fit"\nplace = "centre"\nmultiple_of = 1\n' + RAW,
            ("inputs[0]", "`place` cannot be the centre", "remove it"),
        ),
        (HEAD + IMAGE + DETECTION, ("outputs[0]", '`scores` goes with row = "box"', "give both, or neither")),
        (
            HEAD + IMAGE + DETECTION.replace('"box"', '"box classes"') + 'classes = "c"\n',
            ("outputs[0]", "`classes` goes with", "remove it"),
        ),
        (
            HEAD + IMAGE + DETECTION.replace("xyxy", "ltrb"),
            ("outputs[0].box", "ltrb", "xyxy, yxyx, xywh, cxcywh"),
        ),
        (
            HEAD + IMAGE + DETECTION.replace('"box"', '"rows"'),
            ("outputs[0].row", "rows", "box objectness classes,"),
        ),
        (
            HEAD + IMAGE + DETECTION.replace('"box"', '"box score class"') + 'logits = "sigmoid"\n',
            ("outputs[0]", "`logits` needs a number for each label", "remove it"),
        ),
        (
            HEAD + IMAGE + DETECTION + 'scores = "s"\nbackground = "none"\n',
            ("outputs[0]", "`background` is 'none'", "not one of `labels`"),
        ),
        (
            HEAD + IMAGE + DETECTION.replace(', "b"', "") + 'scores = "s"\nbackground = "a"\n',
            ("outputs[0]", "`labels` has nothing but the background", "add"),
        ),
        (HEAD + IMAGE + DETECTION + 'scores = "y"\n', ("outputs[0]", "name one output twice: y, y")),
        (HEAD + IMAGE + DETECTION + "iou_threshold = 2\n", ("outputs[0].iou_threshold", "<= 1")),
        (
            HEAD
            + IMAGE.replace("image", "tensor").partition("width")[0]
            + "shape = [1]\n"
            + '[[outputs]]\nname = "y"\nkind = "heatmap"\nlabel = "spot"\nthreshold = 0.5\n',
            ("`outputs`", "no input is one", "of kind image"),
        ),
        (HEAD + IMAGE + CTC + 'blank = "none"\n', ("outputs[0].blank", "none", "first, last")),
        (HEAD + IMAGE, ("`outputs`", "add it")),
        (HEAD + IMAGE + IMAGE + RAW, ("`inputs` names one of them twice",)),
        (HEAD + IMAGE + RAW.replace("raw", "scores") + "threshold = 1.0\n", ("outputs[0]", "go together")),
        (
            HEAD + IMAGE + RAW + '[providers]\norder = ["gpu"]\n',
            ("providers.order[0]", "gpu", "tensorrt, cuda,"),
        ),
        (
            HEAD + IMAGE + RAW + '[providers.tensorrt]\nprecision = "int4"\n',
            ("providers.tensorrt.precision", "int4", "fp32, fp16, int8"),
        ),
        (
            HEAD + IMAGE + RAW + '[providers.tensorrt]\ncalibration = "ranges"\n',
            ("providers.tensorrt", "`calibration` goes with"),
        ),
        (HEAD + IMAGE + RAW + "[batching]\nmax_batch = 0\n", ("batching.max_batch", ">= 1")),
        (HEAD.replace('"m"', '"a/b"') + IMAGE + RAW, ("`name`", "a/b")),
        (HEAD.replace('"1"', '"1+gpu"') + IMAGE + RAW, ("`version`", "1+gpu")),
        ("name =", ("not TOML",)),
    ],
)
def test_a_wrong_manifest_is_told_by_file_and_field(text: str, parts: tuple[str, ...]) -> None:
    """The error names the file, the field and what to do; nothing misspelt is passed over."""
    with pytest.raises(manifests.BadPackage) as caught:
        parsed(text)
    for part in (str(WHERE), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"), [("ranges", "'ranges' is not there"), ("../ranges", "lies outside the package")]
)
def test_a_table_of_ranges_must_be_in_the_package(tmp_path: Path, name: str, words: str) -> None:
    """Where TensorRT computes in INT8 by a table, the package has it, or is refused with the file's name."""
    extra = f'[providers.tensorrt]\nprecision = "int8"\ncalibration = "{name}"'
    folder = packages.write_classifier(tmp_path / "m", extra=extra)
    with pytest.raises(manifests.BadPackage, match=words):
        models.load(folder)
    (folder / "ranges").write_bytes(b"TRT-8503-EntropyCalibration2\n")
    if name == "ranges":
        assert models.load(folder).manifest.providers.tensorrt.calibration == "ranges"


def test_a_package_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    """A model carries its manifest, the path of its graph, and the SHA-256 of the file that will run."""
    folder = packages.write_classifier(tmp_path / "brightness", version="1.2.0")
    model = models.load(folder)
    assert model.key == models.Key("brightness", "1.2.0")
    assert model.path == folder / "model.onnx"
    assert model.sha256 == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()


def test_a_graph_that_is_missing_or_outside_is_refused(tmp_path: Path) -> None:
    """A package can name no file but its own, and it must be there."""
    folder = packages.write_classifier(tmp_path / "one")
    manifest = folder / "model.toml"
    whole = manifest.read_text()
    manifest.write_text('file = "../../etc/passwd"\n' + whole)
    with pytest.raises(manifests.BadPackage, match="outside the package"):
        models.load(folder)
    manifest.write_text('file = "other.onnx"\n' + whole)
    with pytest.raises(manifests.BadPackage, match=r"other\.onnx.*put the graph into"):
        models.load(folder)


def test_a_dictionary_that_is_no_use_is_told(tmp_path: Path) -> None:
    """It is a file of the package, in UTF-8, with something in it; the error says which field names it."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    manifest = tmp_path / "model.toml"
    letters = tmp_path / "letters.txt"
    for dictionary, content, words in (
        ("../letters.txt", None, "lies outside the package"),
        ("letters.txt", None, "cannot be read (No such file or directory); put the dictionary into"),
        ("letters.txt", b"a\n\xff\n", "is not UTF-8"),
        ("letters.txt", b"", "is empty; write one character a line"),
    ):
        manifest.write_text(HEAD + IMAGE + CTC.replace("letters.txt", dictionary))
        if content is not None:
            letters.write_bytes(content)
        with pytest.raises(manifests.BadPackage) as caught:
            models.load(tmp_path)
        for part in (str(manifest), "outputs[0].dictionary", dictionary, words):
            assert part in str(caught.value)


def test_a_dictionary_has_one_character_a_line(tmp_path: Path) -> None:
    """Whatever ends its lines, and be a character a space or what Unicode takes for the end of a line."""
    (tmp_path / "letters.txt").write_bytes("\ufeffa\r\n \nb\u2028\n\u3000\nc".encode())
    output = manifests.Ctc(name="y", dictionary="letters.txt", space=True)
    assert alphabet.read(tmp_path, output) == ("", "a", " ", "b\u2028", "\u3000", "c", " ")
    assert alphabet.read(tmp_path, manifests.Ctc(name="y", dictionary="letters.txt", blank="last"))[-1] == ""


def test_a_broken_package_hides_no_other(tmp_path: Path) -> None:
    """A scan gives all whole packages, in folders by model or version, and the others with what is wrong."""
    packages.write_classifier(tmp_path / "flat")
    packages.write_scorer(tmp_path / "mean" / "1.0.0", version="1.0.0")
    packages.write_scorer(tmp_path / "mean" / "2.0.0", version="2.0.0")
    packages.write_scorer(tmp_path / "again", version="2.0.0")
    packages.write_picker(tmp_path / ".incoming")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "model.toml").write_text("name = 3")
    found = models.scan(tmp_path)
    assert sorted(map(str, found.models)) == ["brightness@1.0.0", "mean@1.0.0", "mean@2.0.0"]
    assert {folder.name for folder in found.broken} == {"empty", "wrong", "2.0.0"}
    assert "missing" in found.broken[tmp_path / "empty"]
    assert "Expected `str`" in found.broken[tmp_path / "wrong"]
    assert str(tmp_path / "again") in found.broken[tmp_path / "mean" / "2.0.0"]


def test_versions_are_ordered_as_people_number_them() -> None:
    """1.9 comes before 1.10, and a pre-release before its release."""
    rising = ["0.9", "1.0-alpha", "1.0-rc1", "1.0-rc2", "1.0", "1.0.1", "1.9", "1.10", "2", "10.0"]
    assert sorted(set(rising), key=models.version_order) == rising


def test_a_catalogue_finds_the_newest_unless_a_version_is_named(tmp_path: Path) -> None:
    """A job without a version gets the newest that is served, also after one was withdrawn."""
    catalogue = models.Catalogue()
    versions = {
        version: models.load(packages.write_scorer(tmp_path / version, version=version))
        for version in ("1.9.0", "1.10.0", "1.2.0")
    }
    for model in versions.values():
        catalogue.add(model)
    assert catalogue.resolve("mean") is versions["1.10.0"]
    assert catalogue.resolve("mean", "1.2.0") is versions["1.2.0"]
    catalogue.remove(models.Key("mean", "1.10.0"))
    assert catalogue.resolve("mean") is versions["1.9.0"]
    assert len(catalogue) == 2


def test_who_names_no_version_gets_the_preferred_one_that_is_served(tmp_path: Path) -> None:
    """Not the newest: the first of those that are preferred, before and after any of them comes or goes."""
    catalogue = models.Catalogue()
    catalogue.prefer({"mean": ("2", "1"), "other": ("1",)})
    versions = {
        version: models.load(packages.write_scorer(tmp_path / version, version=version)) for version in "123"
    }
    catalogue.add(versions["1"])
    catalogue.add(versions["3"])
    assert catalogue.resolve("mean") is versions["1"]
    catalogue.add(versions["2"])
    assert catalogue.resolve("mean") is versions["2"]
    assert catalogue.resolve("mean", "3") is versions["3"]
    catalogue.prefer({"mean": ("1", "2")})
    assert catalogue.resolve("mean") is versions["1"]
    catalogue.retire(models.Key("mean", "1"))
    assert catalogue.resolve("mean") is versions["2"]
    catalogue.prefer({})
    assert catalogue.resolve("mean") is versions["3"], "of what nobody prefers it is the newest"


def test_an_unknown_model_is_told_with_what_there_is(tmp_path: Path) -> None:
    """The error names what was asked for, and what is served instead."""
    catalogue = models.Catalogue()
    catalogue.add(models.load(packages.write_scorer(tmp_path / "a")))
    with pytest.raises(models.UnknownModel, match=r"model mean@7 is not served here.*mean@1\.0\.0"):
        catalogue.resolve("mean", "7")
    with pytest.raises(models.UnknownModel, match="model other is not"):
        catalogue.resolve("other")


def test_a_version_that_retires_is_there_for_tasks_that_came_before(tmp_path: Path) -> None:
    """Who comes now does not find it; who came before does, if no other will do, until it is removed."""
    old, new = (
        models.load(packages.write_classifier(tmp_path / version, version=version)) for version in "12"
    )
    catalogue = models.Catalogue()
    for model in (old, new):
        catalogue.add(model)
    catalogue.retire(new.key)
    assert (catalogue.serves(old.key), catalogue.serves(new.key)) == (True, False)
    assert catalogue.resolve("brightness") is catalogue.resolve("brightness", came_before=True) is old
    with pytest.raises(models.UnknownModel):
        catalogue.resolve("brightness", "2")
    assert catalogue.resolve("brightness", "2", came_before=True) is new
    catalogue.retire(old.key)
    assert catalogue.resolve("brightness", "1", came_before=True) is old
    catalogue.remove(new.key)
    assert catalogue.resolve("brightness", came_before=True) is old
    catalogue.add(old)
    catalogue.remove(old.key)
    with pytest.raises(models.UnknownModel):
        catalogue.resolve("brightness", came_before=True)
