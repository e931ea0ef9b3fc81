"""Claims about programs kept between runs: they are found again, and never cost a result."""

import contextlib
import os
import resource
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.commands import opening
from jaxalign.commands.arguments import parse
from jaxalign.commands.main import main
from jaxalign.errors import InputError
from jaxalign.numerics import PrecisionError
from jaxalign.runtime import compilation_cache
from jaxalign.runtime.compilation_cache import enable_compilation_cache
from jaxalign.study.session import Session

ROOT = Path(__file__).parent.parent
HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
X = np.linspace(-1, 1, 7, dtype=np.float32)


@pytest.fixture(autouse=True)
def settings_as_before(users_programs, monkeypatch):
    """Each test leaves JAX's settings as it found them; the canary has tests of its own."""
    monkeypatch.setattr(compilation_cache, "require_exact_compilation", lambda: None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "programs"


@pytest.fixture
def events():
    """How often JAX loaded a program from the folder, and how often it stored one."""
    counts = Counter()

    def count(event, **_):
        counts[event] += 1

    jax.monitoring.register_event_listener(count)
    yield counts
    jax.monitoring.unregister_event_listener(count)


def entries(folder):
    return sorted(folder.glob("*-cache"))


def program(power=3, **options):
    """A new function, so that nothing but a folder can have it compiled."""

    def kept(x):
        return x**power - x

    return jax.jit(kept, compiler_options=options)


def run(**options):
    """Compile and run a program; it must say what numpy says."""
    np.testing.assert_allclose(program(**options)(X), X**3 - X, atol=1e-6)


@contextlib.contextmanager
def full_disk(size=512):
    """No file grows beyond ``size`` bytes: a write ends half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def note(capsys):
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxalign: note: ")
    assert err.count("\n") == 1
    return err


# Programs are kept and found again.


def test_program_compiled_once_is_loaded_the_next_time(folder, events, capsys):
    assert enable_compilation_cache(folder) == folder
    run()
    assert (events[HIT], events[MISS]) == (0, 1)
    run()
    assert (events[HIT], events[MISS]) == (1, 1)
    assert len(entries(folder)) == 1
    assert capsys.readouterr() == ("", "")


def test_importing_jaxalign_leaves_the_settings_of_jax_alone_and_matplotlib_out():
    """Matplotlib takes a second, and only who draws needs it."""
    code = (
        "import sys, jax, jaxalign.commands.run_study\n"
        "print(jax.config.jax_compilation_cache_dir, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "None False\n"


def test_program_compiled_with_other_options_is_never_loaded(folder, events):
    """With the loose program in the folder, the strict one still keeps its roundings."""
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in np.random.default_rng(0).normal(size=(2, 64, 64)))

    def chain(x, w):
        return ((x * w + x) * w - x).astype(jnp.float32)

    def compiled(excess):
        fresh = lambda x, w: chain(x, w)  # noqa: E731 - a new function each time
        return jax.jit(fresh, compiler_options={"xla_allow_excess_precision": excess})(x, w)

    exact = chain(x, w)
    enable_compilation_cache(folder)
    assert not np.array_equal(compiled(True), exact)
    assert np.array_equal(compiled(False), exact)
    assert events[HIT] == 0
    assert not np.array_equal(compiled(True), exact)
    assert np.array_equal(compiled(False), exact)
    assert events[HIT] == 2


def test_program_of_another_version_is_not_loaded(folder, events, monkeypatch):
    enable_compilation_cache(folder)
    with monkeypatch.context() as other:
        other.setattr("jax._src.cache_key.jaxlib_version_str", "0.0.1")
        run()
    run()
    assert events[HIT] == 0
    assert len(entries(folder)) == 2


def test_canary_is_asked_before_any_program_can_be_loaded(folder, monkeypatch):
    asked = []

    def canary():
        asked.append(jax.config.jax_compilation_cache_dir)
        raise PrecisionError("skips roundings", "unset XLA_FLAGS")

    monkeypatch.setattr(compilation_cache, "require_exact_compilation", canary)
    with pytest.raises(PrecisionError):
        enable_compilation_cache(folder)
    assert asked == [None] == [jax.config.jax_compilation_cache_dir]
    assert not folder.exists()


# Where the folder is.


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "~/.cache/jaxalign/programs"),
        ("linux", {"XDG_CACHE_HOME": "~/else"}, "~/else/jaxalign/programs"),
        ("darwin", {}, "~/Library/Caches/jaxalign/programs"),
        ("win32", {}, "~/AppData/Local/jaxalign/programs"),
        ("win32", {"LOCALAPPDATA": "~/local"}, "~/local/jaxalign/programs"),
        ("linux", {"JAXALIGN_CACHE": "~/mine", "XDG_CACHE_HOME": "~/else"}, "~/mine"),
    ],
)
def test_folder_is_where_the_platform_keeps_caches(
    platform, variables, expected, tmp_path, monkeypatch
):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "JAXALIGN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value.replace("~", str(tmp_path)))
    monkeypatch.setattr(sys, "platform", platform)
    found = enable_compilation_cache()
    assert found == Path(expected.replace("~", str(tmp_path)))
    assert found.stat().st_mode & 0o777 == 0o700, "programs are run: nobody else may write them"


def test_empty_variable_turns_the_default_off_and_a_named_folder_still_counts(folder, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", "")
    assert enable_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert enable_compilation_cache(folder) == folder


def test_second_call_moves_to_another_folder(folder, tmp_path):
    enable_compilation_cache(folder)
    run()
    enable_compilation_cache(tmp_path / "other")
    run()
    assert len(entries(folder)) == len(entries(tmp_path / "other")) == 1


# The bound.


def test_programs_used_longest_ago_are_removed_beyond_the_bound(folder):
    folder.mkdir()
    for age, name in enumerate(("new", "read", "old", "older")):
        path = folder / f"jit_{name}-0-cache"
        path.write_bytes(bytes(100))
        read = 0 if name == "read" else age
        os.utime(path, (1e9 - read, 1e9 - age))
    (folder / "unrelated.txt").write_bytes(bytes(1000))
    enable_compilation_cache(folder, max_bytes=250)
    assert {path.name[:-8] for path in entries(folder)} == {"jit_new", "jit_read"}
    assert (folder / "unrelated.txt").exists()


def test_nothing_is_removed_within_the_bound(folder, events):
    enable_compilation_cache(folder)
    run()
    enable_compilation_cache(folder)
    run()
    assert events[HIT] == 1


# What goes wrong costs a line, not a result.


@pytest.mark.parametrize("damage", ["truncated", "empty", "a program of another format"])
def test_damaged_program_costs_a_warning_even_where_warnings_are_errors(damage, folder, events):
    enable_compilation_cache(folder)
    run()
    [path] = entries(folder)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "a program of another format": jax_cache_entry(b"not a program"),
        }[damage]
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        enable_compilation_cache(folder)
        run()
    [warning] = seen
    assert "Error reading persistent compilation cache entry" in str(warning.message)
    assert events[HIT] == 0


def jax_cache_entry(content):
    """An entry that unpacks well, but holds no program of this version."""
    from jax._src.compilation_cache import combine_executable_and_time, compress_executable

    return compress_executable(combine_executable_and_time(content, 1))


def test_program_is_still_loaded_while_the_disk_is_full(folder, events):
    enable_compilation_cache(folder)
    run()
    with full_disk():
        with pytest.warns(UserWarning, match="Error writing persistent compilation"):
            program(2)(X)
        run()
    assert events[HIT] == 1


def test_a_folder_that_is_asked_for_and_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--compilation-cache .* cannot be written \(Not a dir"):
        enable_compilation_cache(tmp_path / "file" / "programs")
    assert jax.config.jax_compilation_cache_dir is None


def test_default_folder_that_cannot_be_made_costs_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compilation_cache.VARIABLE, str(tmp_path / "file" / "programs"))
    assert enable_compilation_cache() is None
    assert "compiled programs are not kept for the next run (" in note(capsys)
    assert jax.config.jax_compilation_cache_dir is None
    run()


def test_user_without_a_home_costs_one_line(monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "JAXALIGN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert enable_compilation_cache() is None
    assert "(Could not determine home directory.)" in note(capsys)


def test_folder_removed_during_a_run_costs_a_warning(folder):
    enable_compilation_cache(folder)
    run()
    for path in (*entries(folder), folder):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.warns(UserWarning, match="Error writing persistent compilation"):
        run()


def test_other_warnings_stay_what_they_are(folder):
    enable_compilation_cache(folder)
    with pytest.raises(UserWarning, match="something else"):  # errors in these tests
        warnings.warn("something else", UserWarning, stacklevel=1)


# The command.


@pytest.fixture
def asked(monkeypatch):
    """What the command asks of the folder; nothing is computed."""
    calls = []
    monkeypatch.setattr(opening, "enable_compilation_cache", lambda *given: calls.append(given))
    monkeypatch.setattr(Session, "open", lambda *_, **__: 1 / 0)
    return calls


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), [(None,)]),
        (("--compilation-cache", "there"), [(Path("there"),)]),
        (("--no-compilation-cache",), []),
    ],
)
def test_command_keeps_programs_unless_told_not_to(flags, expected, asked, tmp_path):
    output = ("--output", str(tmp_path / "r.json"))
    with pytest.raises(ZeroDivisionError):
        main(["--model", "demo", "--device", "cpu", *output, *flags])
    jax.config.update("jax_default_device", None)
    assert asked == expected


def test_folder_and_no_folder_exclude_each_other():
    with pytest.raises(InputError, match="not allowed with argument"):
        parse(["--compilation-cache", "there", "--no-compilation-cache"])
