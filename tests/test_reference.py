"""One grammar for models, and its refusals in the words of the door: Python or the command line."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support.fixture import NAMES, Fixture

import upernet_zoo as uz
from upernet_zoo import errors, optimized
from upernet_zoo.cli import main
from upernet_zoo.models.fused.model import FusedUPerNet
from upernet_zoo.reference import Kind, Reference, Repository, saved_place

ONE = Fixture(NAMES[0])


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def folder(tmp_path):
    return uz.create_model("demo").save_pretrained(tmp_path / "here" / "saved")


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_each_form_is_what_it_looks_like(small_index, tmp_path):
    Path("runs").mkdir()
    Path("mine.pth").touch()
    for value, kind, attribute, expected in (
        (ONE.name, Kind.NAME, "text", ONE.name),
        ("demo", Kind.DEMO, "text", "demo"),
        ("mine.pth", Kind.FILE, "path", Path("mine.pth")),
        (Path("mine.pth"), Kind.FILE, "path", Path("mine.pth")),
        ("runs", Kind.FOLDER, "path", Path("runs")),
        (Path("runs"), Kind.FOLDER, "path", Path("runs")),
        ("local-dir:not/there", Kind.FOLDER, "path", Path("not/there")),
        ("hf-hub:org/name", Kind.HUB, "repository", Repository("org/name")),
        ("hf-hub:org/name@refs/pr/1", Kind.HUB, "repository", Repository("org/name", "refs/pr/1")),
    ):
        found = Reference.parse(value)
        assert found.kind is kind and getattr(found, attribute) == expected
    model = torch.nn.Linear(1, 1)
    assert Reference.parse(model).kind is Kind.MODEL and Reference.parse(model).model is model


def test_a_name_comes_before_a_file_or_folder_of_its_spelling(small_index):
    Path(ONE.name).mkdir()
    Path("demo").touch()
    assert Reference.parse(ONE.name).kind is Kind.NAME and Reference.parse("demo").kind is Kind.DEMO
    for value in (f"./{ONE.name}", Path(ONE.name), f"local-dir:{ONE.name}"):
        assert Reference.parse(value).kind is Kind.FOLDER
    assert Reference.parse("./demo").kind is Reference.parse(Path("demo")).kind is Kind.FILE


def test_a_tilde_is_the_home_alone_and_else_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pth").touch()
    Path("~x.pth").touch()
    assert Reference.parse("~/mine.pth").path == tmp_path / "mine.pth"
    assert Reference.parse("~x.pth").path == Path("~x.pth")


@pytest.mark.parametrize(
    "value, error, message",
    (
        (3, errors.ArgumentError, "expected a name such as 'upernet_.*found 3"),
        ("", errors.ArgumentError, "expected a name"),
        (b"demo", errors.ArgumentError, "expected a name"),
        ("Demo", errors.ModelNotFoundError, "Did you mean demo"),
        (ONE.name.upper(), errors.ModelNotFoundError, f"Did you mean {ONE.name}"),
        (ONE.name[:-1], errors.ModelNotFoundError, f"Did you mean .*{ONE.name}"),
        ("unheard-of", errors.ModelNotFoundError, r"upernet_zoo.list_models\(\)"),
        ("runs/mine.pth", errors.MissingFileError, "no such file or folder.*Check the path"),
        ("mine.safetensors", errors.MissingFileError, "no such file or folder"),
        (Path("mine"), errors.MissingFileError, "no such file or folder"),
        ("org/name", errors.MissingFileError, "Hugging Face Hub: hf-hub:org/name"),
        ("hf_hub:org/name", errors.ArgumentError, "Did you mean 'hf-hub:org/name'"),
        ("HF-HUB:org/name", errors.ArgumentError, "Did you mean 'hf-hub:org/name'"),
        ("localdir:runs", errors.ArgumentError, "Did you mean 'local-dir:runs'"),
        ("timm:resnet50", errors.ArgumentError, "Prefixes are hf-hub: and local-dir:"),
        ("hf-hub:org", errors.ArgumentError, "expected a Hub repository"),
        ("hf-hub:org/name@", errors.ArgumentError, "expected a Hub repository"),
        ("local-dir:", errors.ArgumentError, "expected a folder"),
        ("https://bob:hunter2@host/mine.pth?token=hunter2", errors.ArgumentError, "https://host/mine.pth is a URL.*mirrors="),
        ("x" * 5000, errors.ModelNotFoundError, "No model named"),
        ("a\0b", errors.ModelNotFoundError, r"'a\\x00b'"),
    ),
)
def test_what_names_no_model_is_refused_with_what_it_may_have_meant(small_index, value, error, message):
    with pytest.raises(error, match=message) as caught:
        Reference.parse(value)
    assert len(str(caught.value)) < 600 and "hunter2" not in str(caught.value) and " --" not in str(caught.value)


def test_from_pretrained_takes_folders_and_repositories():
    Path("saved").mkdir()
    assert saved_place("saved") == saved_place(Path("saved")) == saved_place("local-dir:saved") == Path("saved")
    assert saved_place("org/name@v1") == saved_place("hf-hub:org/name", "v1") == Repository("org/name", "v1")
    for arguments in (("saved", "v1"), ("org/name@v1", "v2")):
        with pytest.raises(errors.ArgumentError):
            saved_place(*arguments)
    for nothing in ("demo", Path("org/name")):
        with pytest.raises(errors.ModelNotFoundError, match="create_model"):
            saved_place(nothing)


def test_every_door_takes_every_form(small_index, folder, monkeypatch):
    monkeypatch.setenv("UPERNET_ZOO_OFFLINE", "1")
    picture = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    expected = uz.create_model("demo")
    for ref in ("demo", "saved", Path("saved"), f"local-dir:{folder}", "saved/model.safetensors", Path("saved/model.safetensors")):
        assert same_weights(uz.create_model(ref), expected)
        assert same_weights(uz.create_backbone(ref), expected.backbone)
        assert isinstance(optimized.load(ref), FusedUPerNet)
        assert isinstance(uz.Segmenter(ref, device="cpu").model, FusedUPerNet)
    assert uz.create_model(expected) is expected and uz.create_backbone(expected) is expected.backbone
    assert (uz.Segmenter("demo", device="cpu")(picture).labels == uz.Segmenter(expected)(picture).labels).all()
    for ref in ("demo", folder / "model.safetensors", expected):
        fresh = uz.create_model(ref, pretrained=False)
        assert fresh.config == expected.config and not same_weights(fresh, expected)


def test_a_checkpoint_file_says_what_was_assumed_and_its_digest_counts():
    with pytest.warns(UserWarning, match="for 3 classes"):
        model = uz.create_model(ONE.checkpoint, num_classes=3)
    assert model.config.num_classes == 3
    assert uz.create_model(ONE.checkpoint, sha256=ONE.expected["sha256"]).origin["sha256"] == ONE.expected["sha256"]
    with pytest.raises(errors.IntegrityError):
        uz.create_model(ONE.checkpoint, sha256="0" * 64)
    with pytest.raises(errors.IntegrityError):
        uz.Segmenter(str(ONE.checkpoint), sha256="0" * 64)


def test_loading_options_reach_the_model_through_every_door(small_index, own_cache, tmp_path):
    for number, door in enumerate((uz.create_model, uz.create_backbone, optimized.load, uz.Segmenter)):
        mine = tmp_path / str(number)
        with pytest.raises(errors.OfflineError, match=re.escape(str(tmp_path / "gone"))):
            door(ONE.name, mirrors=[tmp_path / "gone"], cache_dir=mine, local_files_only=True)
        with pytest.raises(errors.IntegrityError, match="expected f{64}"):
            door(ONE.name, checkpoint=ONE.checkpoint, sha256="f" * 64, cache_dir=mine)
        door(ONE.name, mirrors=[ONE.folder], cache_dir=mine, local_files_only=True)
        assert list(mine.rglob("*.safetensors")) and not own_cache.exists()
    half = uz.Segmenter(ONE.name, dtype=torch.bfloat16, device="cpu", cache_dir=mine, local_files_only=True).model
    assert half.decode_head.classifier.weight.dtype == torch.bfloat16


def test_options_that_cannot_be_meant(small_index, folder):
    model = uz.create_model("demo")
    for ref in ("demo", folder, "hf-hub:org/name", model):
        for options in ({"checkpoint": "x.pth"}, {"sha256": "0" * 64}, {"mirrors": ["x"]}):
            for door in (uz.create_model, uz.create_backbone, optimized.load, uz.Segmenter):
                with pytest.raises(errors.ArgumentError, match="checkpoint=, sha256= and mirrors= go with a name of the index, not with"):
                    door(ref, **options)
    with pytest.raises(errors.ArgumentError, match="pinned by its commit"):
        uz.create_model("hf-hub:org/name", sha256="0" * 64)
    with pytest.raises(errors.ArgumentError, match="checkpoint= and mirrors= go with a name of the index, not with .*a checkpoint file"):
        uz.create_model(ONE.checkpoint, checkpoint=ONE.checkpoint)
    for change in ({"num_classes": 3}, {"labels": ["a"]}, {"in_channels": 1}):
        with pytest.raises(errors.ArgumentError, match="model.reset_classifier"):
            uz.create_model(model, **change)
    for other in (torch.nn.Linear(1, 1), uz.optimize_for_inference(model)):
        with pytest.raises(errors.ArgumentError, match=f"found a {type(other).__name__}"):
            uz.create_model(other)
    with pytest.raises(TypeError, match="no argument 'check_point'. Did you mean 'checkpoint'"):
        uz.create_backbone("demo", check_point="x")


PYTHON = re.compile(
    r"\b(checkpoint|sha256|mirrors|cache_dir|local_files_only|token|pretrained|config|ema|mode|batch_size)=|\w\(|\w_pretrained"
)


@pytest.mark.parametrize(
    "arguments, words",
    (
        (["info", "unheard-of"], "upernet-zoo list"),
        (["info", "https://host/x.pth"], "--mirror"),
        (["info", "demo", "--checkpoint", "x"], "--checkpoint, --sha256 and --mirror go with commands"),
        (["export", "saved", "--out", "x.onnx", "--sha256", "0" * 64], "--checkpoint, --sha256 and --mirror go with a name of the index"),
        (["benchmark", ONE.name, "--random", "--sha256", "0" * 64], "do not go with --random"),
        (["export", ONE.name, "--out", "x.onnx", "--sha256", "xyz"], "--sha256 'xyz' is no SHA-256"),
        (["export", ONE.name, "--out", "x.onnx", "--local-files-only"], "the network is not used (--local-files-only)"),
        (["export", ONE.name, "--out", "x.onnx", "--local-files-only"], "--checkpoint FILE"),
        (["export", ONE.name, "--out", "x.onnx", "--checkpoint", str(ONE.checkpoint), "--sha256", "0" * 64], "--sha256 <64 hex digits>"),
        (["predict", "empty", str(ONE.photo)], "Save a model there with upernet-zoo convert"),
        (["predict", "demo", str(ONE.photo), "--crop", "64x64"], "give --mode slide"),
        (["predict", "demo", str(ONE.photo), "--scales", "99"], "--scales must be"),
        (["predict", "demo", str(ONE.photo), "--batch-size", "0"], "--batch-size must be"),
        (["convert", "demo", "--ema", "--out", "x"], "--config and --ema go with a checkpoint file"),
        (["push", "hf-hub:org", "org/name"], "expected a Hub repository"),
        (["where", "demo"], "demo is the demo model in the package. Here models go by names of the list"),
        (["download", "saved"], "saved is a folder"),
        (["download", ONE.name[:-1]], f"Did you mean {ONE.name}"),
        (["download", ONE.name, "--cache-dir", "mine", "--mirror", "nowhere"], "mine/checkpoints"),
    ),
)
def test_the_command_line_never_answers_in_python(small_index, folder, capsys, arguments, words):
    Path("empty").mkdir()
    assert main.main(arguments) == 1
    error = capsys.readouterr().err
    assert words in error and not PYTHON.search(error), error


def test_every_command_that_takes_a_model_takes_every_reference_and_option(small_index, folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = ["--checkpoint", "--sha256", "--mirror", "--cache-dir", "--local-files-only"]
    for command in ["predict", "evaluate", "train", "convert", "export", "push", "benchmark", "info"]:
        with pytest.raises(SystemExit):
            main.main([command, "--help"])
        text = capsys.readouterr().out
        assert all(word in text for word in ("hf-hub:ORG/NAME", "demo", *options)), command
        assert ("--dtype" in text) == (command in ("predict", "evaluate", "train", "benchmark"))
    for ref in ("demo", "saved", "saved/model.safetensors"):
        assert main.main(["predict", ref, str(ONE.photo), "--device", "cpu", "--out", "out", "--scales", "0.25"]) == 0
        assert main.main(["info", ref]) == 0
        assert "num_classes=19" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main.main(["convert", "demo", "--out", "again"]) == 0
    assert same_weights(uz.create_model("again"), uz.create_model("demo"))


def test_a_warning_on_the_command_line_is_a_line_of_its_own(tmp_path):
    content = torch.load(ONE.checkpoint, weights_only=True)
    torch.save(content["state_dict"], tmp_path / "bare.pth")
    done = subprocess.run(
        [sys.executable, "-m", "upernet_zoo", "info", str(tmp_path / "bare.pth")], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"upernet-zoo: .*bare.pth: the file does not say all; assumed .*\n", done.stderr), done.stderr


def test_the_grammar_needs_no_torch():
    code = (
        "import sys; from upernet_zoo.reference import Reference; Reference.parse('demo'); Reference.parse('hf-hub:org/name')\n"
        "from upernet_zoo.cli.main import main; main(['info', 'demo'])\n"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
