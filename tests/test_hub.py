"""Claims about where a model comes from: folder, bundled, hub, cache, and what stands in for it."""

import http.server
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from tiny_run import WEIGHTS, refusal, run, write_model, write_prompts

import jaxalign
from jaxalign import InputError
from jaxalign.checkpoints import ModelUnavailable, hub, locate

NAME, COMMIT, OTHER = "someone/some-model", "a" * 40, "b" * 40
FILES = ["config.json", "tokenizer.json", WEIGHTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's own layout."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(cache, model, *, name=NAME, commit=COMMIT, ref="main", files=FILES):
    """Put a model into the cache as a download leaves it: blobs, a snapshot of links, a ref."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for folder in (snapshot, home / "blobs", home / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        blob = home / "blobs" / f"{commit[:4]}-{file}"
        shutil.copyfile(model / file, blob)
        (snapshot / file).symlink_to(blob)
    (home / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def answers(monkeypatch):
    """Let the hub answer: set ``answers.info`` to a call or an error; see ``answers.asked``."""
    state = SimpleNamespace(asked=[], downloads=[], info=None, files=FILES, folder=None)

    def model_info(self, name, *, revision=None, timeout=None):
        state.asked.append((name, revision, timeout))
        if isinstance(state.info, BaseException):
            raise state.info
        if state.info is not None:
            return state.info()
        siblings = [SimpleNamespace(rfilename=file) for file in state.files]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    download = huggingface_hub.snapshot_download

    def snapshot_download(name, *, revision=None, local_files_only=False, **more):
        if local_files_only:
            return download(name, revision=revision, local_files_only=True, **more)
        state.downloads.append((name, revision, more))
        return str(state.folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def http_error(kind, status):
    """An error as the hub's client raises it."""
    request = SimpleNamespace(url="https://hub/api", method="GET")
    return kind("no", response=SimpleNamespace(headers={}, request=request, status_code=status))


def refused(model=None, revision=None):
    """What ``locate`` says of a model that it refuses."""
    with pytest.raises(InputError) as caught:
        locate(model, revision)
    return str(caught.value)


# Folders and the bundled model.


def test_folder_is_taken_as_it_is(model):
    assert locate(str(model)) == locate(model) == hub.Source(model, str(model))


def test_folder_in_the_home_folder_may_be_named_with_a_tilde(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert locate(f"~/{model.name}").folder == model


def test_demo_is_the_bundled_model_and_is_complete():
    source = locate("demo")
    assert source.model == "demo"
    assert not source.note
    assert {*FILES} <= {path.name for path in source.folder.iterdir()}
    assert jaxalign.load("demo").config.num_layers == 6


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c"])
def test_missing_folder_is_refused_without_asking_the_hub(name, answers):
    assert f"--model {name}: there is no such folder. check the path" in refused(name)
    assert not answers.asked


def test_weight_file_in_place_of_its_folder_is_refused(model, answers, monkeypatch):
    monkeypatch.chdir(model)
    said = f"--model {WEIGHTS} is a file, and not one of GGUF. give the folder that it is in"
    assert said in refused(WEIGHTS)
    assert not answers.asked


@pytest.mark.parametrize("name", ["two words", "", "a--b/..c", "x" * 300, "a\0b"])
def test_name_that_no_repository_can_have_is_refused(name):
    line = refused(name)
    assert "is neither a folder nor the name of a repository" in line
    assert "give a folder, a .gguf file, 'demo', or a name like EleutherAI/pythia-70m" in line


def test_revision_of_a_folder_is_refused(model):
    line = refused(model, "step3000")
    assert f"--revision step3000 was given, but --model {model} is a local folder" in line
    assert "leave --revision out" in line


def test_revision_of_the_bundled_model_is_refused():
    words = "--revision step3000 was given, but the bundled model has only one"
    assert words in refused("demo", "step3000")


# The hub answers.


def test_hub_is_asked_and_downloaded_from_at_the_revision(answers, tmp_path):
    answers.folder = tmp_path / "snapshots" / COMMIT
    source = locate(NAME, "step3000")
    [(name, revision, timeout)] = answers.asked
    assert (name, revision) == (NAME, "step3000")
    assert 0 < timeout < hub.DEADLINE_SECONDS <= 10
    [(name, revision, more)] = answers.downloads
    assert (name, revision) == (NAME, "step3000")
    assert source == hub.Source(answers.folder, NAME, COMMIT)
    assert more["allow_patterns"] == hub.WANTED


def test_no_pickle_is_ever_downloaded():
    good = [*FILES, "model-00001-of-00002.safetensors", hub.INDEX]
    bad = ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "code.py"]
    kept = huggingface_hub.utils.filter_repo_objects([*good, *bad], allow_patterns=hub.WANTED)
    assert list(kept) == good


@pytest.mark.parametrize("name", [None, NAME])
def test_repository_with_only_pickles_is_refused_before_the_download(name, answers):
    answers.files = ["config.json", "pytorch_model.bin"]
    line = refused(name)
    assert "has no safetensors at this revision, only config.json, pytorch_model.bin" in line
    assert "safe_serialization=True" in line
    assert not answers.downloads


@pytest.mark.parametrize(
    ("kind", "status", "problem", "remedy"),
    [
        (hub_errors.GatedRepoError, 403, f"{NAME} asks for consent", "hf auth login"),
        (hub_errors.RepositoryNotFoundError, 404, f"hub has no model '{NAME}'", "check its name"),
        (hub_errors.RevisionNotFoundError, 404, "no revision 'step3'", "list of branches"),
    ],
)
def test_refusals_of_the_hub_are_said_plainly(kind, status, problem, remedy, answers):
    answers.info = http_error(kind, status)
    line = refused(NAME, "step3")
    assert problem in line
    assert remedy in line


def test_wrong_revision_of_the_default_model_is_an_error_not_a_fallback(answers):
    answers.info = http_error(hub_errors.RevisionNotFoundError, 404)
    assert f"{hub.DEFAULT_MODEL} has no revision 'step3'" in refused(None, "step3")


# The hub does not answer.

UNREACHABLE = {
    "offline": hub_errors.OfflineModeIsEnabled("offline mode is enabled"),
    "no network": OSError("Name or service not known"),
    "transport": hub_errors.HTTPError("connection refused"),
    "server error": http_error(hub_errors.HfHubHTTPError, 503),
    "another page's answer": json.JSONDecodeError("Expecting value", "<html>", 0),
}


@pytest.fixture(params=list(UNREACHABLE))
def unreachable(request, answers, cache):
    answers.info = UNREACHABLE[request.param]
    return answers


def test_named_model_that_cannot_be_had_never_falls_back(unreachable):
    for name in (NAME, hub.DEFAULT_MODEL):
        line = refused(name)
        assert f"{name} is not in the local cache and the hub cannot be reached" in line
        assert "use --model FOLDER or --model demo" in line
        with pytest.raises(ModelUnavailable):
            locate(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", NAME), f"{NAME} is not in the local cache and the hub cannot be reached"),
        (("--model", "./nothing"), "--model ./nothing: there is no such folder"),
        (("--model", "demo", "--revision", "step3"), "the bundled model has only one"),
    ],
)
def test_command_says_in_one_line_what_cannot_be_had(options, words, answers, cache, tmp_path):
    answers.info = UNREACHABLE["offline"]
    assert words in refusal(*options, "--output", tmp_path / "r.json")


def test_default_model_that_cannot_be_had_is_replaced_by_the_bundled_one(unreachable):
    source = locate()
    assert (source.folder, source.model) == (hub.BUNDLED, "demo")
    assert f"bundled demo model runs instead of {hub.DEFAULT_MODEL}: " in source.note
    assert "not in the local cache and the hub cannot be reached (" in source.note
    assert f"instead of {hub.DEFAULT_MODEL} at step3000: " in locate(None, "step3000").note


@pytest.mark.parametrize("kind", [hub_errors.GatedRepoError, hub_errors.RepositoryNotFoundError])
def test_default_model_that_the_hub_refuses_is_replaced_by_the_bundled_one(kind, answers):
    answers.info = http_error(kind, 401)
    assert locate().model == "demo"
    assert hub.DEFAULT_MODEL in locate().note


def test_hub_that_hangs_is_given_up_within_the_deadline(answers, cache, monkeypatch):
    """A name lookup knows no timeout: the call itself never returns."""
    assert hub.DEADLINE_SECONDS <= 10
    monkeypatch.setattr(hub, "DEADLINE_SECONDS", 0.3)
    over, returned = threading.Event(), []
    answers.info = lambda: returned.append(over.wait(3600))
    source = locate()
    assert not returned, "it waited for the call"
    over.set()
    assert source.model == "demo"
    assert "(TimeoutError: no answer within" in source.note


def test_first_line_and_result_say_why_the_bundled_model_runs(
    model, answers, cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(hub, "BUNDLED", model)  # a tiny one, to be quick
    answers.info = UNREACHABLE["offline"]
    prompts, output = write_prompts(tmp_path / "p.json"), tmp_path / "r.json"
    small = ("--device", "cpu", "--no-figures", "--schemes", "f16")
    ran = run("schemes", "--prompts", prompts, "--output", output, *small)
    assert ran.code == 0, ran.err
    first = ran.out.splitlines()[0]
    assert first.startswith("schemes study of demo on cpu (the bundled demo model runs instead of ")
    assert f"{hub.DEFAULT_MODEL} is not in the local cache and the hub cannot be reached" in first
    content = json.loads(output.read_text())
    assert content["provenance"]["model"]["name"] == "demo"
    assert content["provenance"]["model"]["note"] in first


# The cache.


def test_cached_model_is_used_without_a_network(unreachable, cache, model):
    snapshot = store(cache, model)
    source = locate(NAME)
    assert source == hub.Source(snapshot, NAME, COMMIT)
    assert jaxalign.load(source).source.revision == COMMIT


def test_cached_default_model_is_preferred_to_the_bundled_one(unreachable, cache, model):
    snapshot = store(cache, model, name=hub.DEFAULT_MODEL)
    assert locate() == hub.Source(snapshot, hub.DEFAULT_MODEL, COMMIT)


def test_cached_revision_is_found_by_its_name_or_commit(unreachable, cache, model):
    store(cache, model)
    step = store(cache, model, commit=OTHER, ref="step3000")
    assert locate(NAME).revision == COMMIT
    for name in ("step3000", OTHER):
        assert locate(NAME, name) == hub.Source(step, NAME, OTHER)
    with pytest.raises(ModelUnavailable, match="not in the local cache"):
        locate(NAME, "step4000")


@pytest.mark.parametrize("left_out", FILES)
def test_incomplete_cache_is_refused_and_named(left_out, answers, cache, model):
    answers.info = UNREACHABLE["offline"]
    snapshot = store(cache, model, files=[file for file in FILES if file != left_out])
    line = refused(NAME)
    assert f"cached snapshot {snapshot} is incomplete and the hub cannot be reached" in line
    assert "connect once to complete it" in line


def test_incomplete_cache_of_the_default_model_makes_way_for_the_bundled_one(answers, cache, model):
    answers.info = UNREACHABLE["offline"]
    store(cache, model, name=hub.DEFAULT_MODEL, files=["config.json"])
    source = locate()
    assert source.model == "demo"
    assert "is incomplete" in source.note


def test_link_to_a_blob_that_is_gone_counts_as_incomplete(answers, cache, model):
    answers.info = UNREACHABLE["offline"]
    snapshot = store(cache, model)
    (snapshot / WEIGHTS).resolve().unlink()
    with pytest.raises(ModelUnavailable, match="is incomplete"):
        locate(NAME)


# A whole download, from a hub of our own.


@pytest.fixture
def own_hub(model, cache, monkeypatch):
    """A server that speaks as much of the hub's language as a download needs."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def answer(self, body):
            path = unquote(self.path.split("?")[0])
            if path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
                siblings = [{"rfilename": file} for file in FILES]
                content = json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode()
            elif path.startswith(f"/api/models/{NAME}/tree/"):
                content = json.dumps(
                    [
                        {"type": "file", "path": f, "size": (model / f).stat().st_size, "oid": f}
                        for f in FILES
                    ]
                ).encode()
            elif path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
                content = (model / Path(path).name).read_bytes()
            else:
                self.send_response(404)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{Path(path).name}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("revision", [None, "main"])
def test_what_was_downloaded_once_is_found_again_offline(own_hub, model, revision, monkeypatch):
    online = locate(NAME, revision)
    assert online.revision == COMMIT
    assert (online.folder / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(NAME, revision) == online
    assert jaxalign.load(NAME, revision).source == online


def test_repository_that_a_hub_does_not_have_is_an_input_error(own_hub):
    with pytest.raises(InputError, match="someone/other"):
        locate("someone/other")
