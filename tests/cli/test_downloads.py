"""Downloads happen, and their folders are created, only if the command line allows it, despite a run's settings."""

import http.server
import json
import shutil
import socket
import threading

import pytest
import timm
import yaml

import mixmo
from mixmo import loading
from mixmo.cli.main import main
from mixmo.comparing import compare
from mixmo.config.recipes import load_recipe
from mixmo.deploy.hub import save_pretrained
from mixmo.errors import InputError
from mixmo.evaluation.comparison import Networks
from mixmo.runs import RunFolder


@pytest.fixture
def asked(monkeypatch):
    """Requests to a local server, and host names and addresses that were looked up."""
    found = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # how soon it notices its end
    connect, look_up = socket.socket.connect, socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: (found.append(to), connect(self, to))[1])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *to, **how: (found.append(to), look_up(*to, **how))[1])
    yield found, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def copy_with_downloads(run, to, **data):
    """Copy a run, set another dataset and allow all downloads in every one of its files."""
    shutil.copytree(
        run.path,
        to / run.path.name,
        ignore=shutil.ignore_patterns("predictions", "calibration-*", "test.json", "*.html"),
    )
    copy = RunFolder(to / run.path.name)
    content = yaml.safe_load(copy.config_file.read_text())
    content["data"] |= {"download": True} | data
    content["model"]["download"] = True
    copy.config_file.write_text(yaml.safe_dump(content))
    about = copy.about()
    about["resolved"]["data"] |= {"download": True}
    about["settings"] = content
    copy.write_json("environment.json", about)
    return copy


NAMES = ["torch/mnist", "torch/inaturalist", "torch/imagenet", "hfds/mnist", "hfds/http://HOST/x", "hfds/nowhere"]


@pytest.mark.parametrize("name", NAMES)
def test_a_runs_folder_asks_no_network_and_makes_no_folder(trained, tmp_path, asked, name, monkeypatch, capsys):
    requests, host = asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.chdir(tmp_path)
    run = copy_with_downloads(trained[1], tmp_path, name=name.replace("HOST", host), root=str(tmp_path / "new"))
    for words in (["test"], ["test", "--refresh", "--corruptions"], ["compare", "--out", "page"], ["fit"]):
        assert main([words[0], str(run.path), *words[1:]]) == 2
        assert ("data.download: true" if words == ["fit"] else "with --download") in capsys.readouterr().err
    with pytest.raises(InputError, match="with --download"):
        compare(Networks("two", [[run.path]]), out=tmp_path / "page")
    main(["export", str(run.path), "--format", "timm", "--out", str(tmp_path / "x")])
    assert main(["predict", str(run.path), str(next((trained[0] / "other" / "test" / "x").iterdir()))]) == 0
    assert main(["fit", str(run.config_file), "--run", "again"]) == 2
    assert requests == []
    assert not (tmp_path / "new").exists() and not (tmp_path / "page").exists() and not (tmp_path / "again").exists()


LOCAL = ["webdataset:pipe:touch made", "webdataset:pipe:curl http://HOST/x.tar", "webdataset:http://HOST/x.tar",
         "webdataset:hf://datasets/a/b", "folder:http://HOST/x", "folder:http://HOST/x.zip", "csv:http://HOST/x.csv",
         "parquet:file:///nowhere", "parquet:http://HOST/x.parquet", "parquet:http::HOST/x", "parquet:hf://datasets/a/b",
         "parquet:simplecache::http://HOST/x", "parquet:zip://*.parquet::http://HOST/x.zip"]  # fmt: skip


@pytest.mark.parametrize("name", LOCAL)
def test_other_kinds_of_images_are_of_this_machine_alone(trained, tmp_path, asked, name, monkeypatch, capsys):
    """Even with permission, no program is started and no host contacted."""
    requests, host = asked
    monkeypatch.chdir(tmp_path)
    run = copy_with_downloads(trained[1], tmp_path, name=name.replace("HOST", host))
    for words in (["test", str(run.path)], ["test", str(run.path), "--download"], ["fit", str(run.config_file)]):
        assert main([*words, *(["--run", "again"] if words[0] == "fit" else [])]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "Traceback" not in said
    assert requests == [] and not (tmp_path / "made").exists() and not (tmp_path / "again").exists()


OVERLAY = {"pretrained_cfg_overlay": {"url": "http://HOST/x.pth"}}


@pytest.mark.parametrize("options", [{"pretrained": True}, OVERLAY, {"pretrained": True, **OVERLAY}])
def test_options_of_a_runs_backbone_fetch_nothing(trained, tmp_path, asked, options, monkeypatch, capsys):
    requests, host = asked
    run = copy_with_downloads(trained[1], tmp_path)
    content = yaml.safe_load(run.config_file.read_text().replace("HOST", host))
    content["model"]["options"] = yaml.safe_load(yaml.safe_dump(options).replace("HOST", host))
    run.config_file.write_text(yaml.safe_dump(content))
    photo = str(next((trained[0] / "other" / "test" / "x").iterdir()))
    for words in (["test"], ["predict", photo], ["compare", "--out", str(tmp_path / "page")]):
        main([words[0], str(run.path), *words[1:]])
    main(["fit", str(run.config_file), "--run", str(tmp_path / "again")])
    assert requests == [], capsys.readouterr().err


def test_other_datasets_ask_no_network_unless_allowed(trained, tmp_path, asked, monkeypatch, capsys):
    requests, _ = asked
    run = copy_with_downloads(trained[1], tmp_path)
    words = ["test", str(run.path), "--ood", "hfds/someone/something"]
    assert main(words) == 2
    assert "accesses the network; allow it with --download." in capsys.readouterr().err and requests == []
    pytest.importorskip("datasets")
    known = []
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda name: known.append(name) or ["train"])
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: 1 / 0)
    assert main([*words, "--download"]) == 2
    assert "'hfds/someone/something' cannot be read: division by zero." in capsys.readouterr().err
    assert set(known) == {"someone/something"}


def test_an_exports_backbone_is_downloaded_where_that_is_allowed(trained, tmp_path, monkeypatch):
    folder = save_pretrained(trained[1].path, tmp_path / "shared")
    spec = json.loads((folder / "mixmo.json").read_text()) | {"backbone": "hf-hub:someone/net"}
    (folder / "mixmo.json").write_text(json.dumps({k: v for k, v in spec.items() if k not in ("sha256", "files")}))
    with pytest.raises(InputError, match=r"'hf-hub:someone/net' of the folder .* has to be downloaded"):
        mixmo.Predictor(folder)
    built = []

    class Noted(mixmo.MixMo):
        def __init__(self, name, *arguments, **options):
            built.append(name)
            super().__init__("wide_resnet10_1", *arguments, **options)

    monkeypatch.setattr(loading, "MixMo", Noted)
    mixmo.Predictor(folder, download=True)
    assert built == ["hf-hub:someone/net"]


def test_a_shared_folder_fetches_no_weights(trained, tmp_path, asked):
    requests, _ = asked
    folder = save_pretrained(trained[1].path, tmp_path / "shared")
    spec = json.loads((folder / "mixmo.json").read_text())  # without digests, as another program may write it
    spec |= {"backbone": "resnet10t", "options": {"pretrained_cfg_overlay": {"hf_hub_id": "someone/x"}}}
    (folder / "mixmo.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"mixmo\.json is damaged: its content does not match its digest"):
        mixmo.Predictor(folder)
    (folder / "mixmo.json").write_text(json.dumps({k: v for k, v in spec.items() if k not in ("sha256", "files")}))
    with pytest.raises(InputError, match="does not hold the network"):
        mixmo.Predictor(folder)
    assert requests == []


@pytest.mark.parametrize("word", [[], ["--download"]])
@pytest.mark.parametrize("ours", [False, True])
def test_the_option_arrives_for_the_test_set_and_for_other_datasets(trained, tmp_path, word, ours, monkeypatch, capsys):
    known = []

    def spy(name, root, split, download):
        known.append((name, download))
        raise RuntimeError("Dataset not found")

    monkeypatch.setattr(timm.data, "create_dataset", spy)
    monkeypatch.chdir(tmp_path)
    data = {"root": str(tmp_path), "download": not word}  # the opposite of what the command line says
    run = copy_with_downloads(trained[1], tmp_path, **({"name": "torch/mnist"} if ours else {}), **data)
    assert main(["test", str(run.path), *([] if ours else ["--ood", "torch/mnist"]), *word]) == 2
    assert set(known) == {("torch/mnist", bool(word))}
    said = capsys.readouterr().err
    assert ("allow its download with --download, or put it there" in said) is not bool(word)
    assert "data.download" not in said


def test_a_resumed_run_takes_permission_from_the_command_line(trained, tmp_path, monkeypatch, capsys):
    known = []

    def spy(name, root, split, download):
        known.append(download)
        raise RuntimeError("Dataset not found")

    monkeypatch.setattr(timm.data, "create_dataset", spy)
    run = copy_with_downloads(trained[1], tmp_path, name="torch/mnist", root=str(tmp_path))
    for words in ([], ["--data.download", "true"], ["--data.download=true"]):
        known.clear()
        main(["fit", str(run.path), *words])
        assert set(known) == {bool(words)}
    assert "allow its download with data.download: true" in capsys.readouterr().err


def test_permissions_stand_in_recipes_but_not_in_runs(trained, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: digits-cut\ndata: {download: true}\n")
    assert load_recipe(recipe)["data"]["download"] is True
    run = copy_with_downloads(trained[1], tmp_path)
    assert "download" not in load_recipe(run.config_file)["data"]
    assert not run.settings().data.download and not run.settings().model.download
    assert "download" not in run.resumed_config()["data"]
