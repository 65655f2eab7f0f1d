import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual.manifest import commit, is_secret, manifest, origin, redact, redact_command, redact_text, version

SECRET = "hunter2"


@pytest.mark.parametrize(
    "key",
    [
        *(
            "api_key",
            "apikey",
            "apiKey",
            "API-KEY",
            "WANDB_API_KEY",
            "track.api_key",
            "track.wandb.api_key",
            "api_keys",
        ),
        *("token", "TOKEN", "auth_token", "accessToken", "hf_token", "password", "db_password", "passwd", "PGPASSWORD"),
        *("secret", "client_secret", "secrets", "credential", "credentials", "aws_credentials", "private_key"),
        *("access_key", "aws_access_key_id", "auth", "basic_auth", "authorization", "Authentication", "oauth2"),
        *("secret.name", "track@auth", "--password", "passphrase", "ssh_key"),
    ],
)
def test_keys_that_name_a_secret(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        *("tokenizer", "n_tokens", "max_tokens", "tokens", "token_dim", "max_token", "cls_token", "class_token"),
        *("mask_token", "pad_token", "author", "authors", "authority", "key", "keys", "monkey", "pass", "passes"),
        *("seed", "path", "strategy.er.capacity", "cwd", "keyboard", "", "."),
    ],
)
def test_keys_that_do_not(key: str) -> None:
    assert not is_secret(key)


def test_redact_reaches_every_depth_and_changes_nothing_else() -> None:
    tree = {
        "track": {"api_key": SECRET, "entity": "lab", "headers": [{"Authorization": f"Bearer {SECRET}"}, "x"]},
        "secret": {"nested": [SECRET, {"deep": SECRET}]},
        "password": 12345,
        "tokenizer": "word",
        "n_tokens": 512,
        "proxy": f"http://me:{SECRET}@proxy:80/path",
        "dsn": f"host=db user=me password={SECRET} port=5",
        "rates": (0.1, None, True, float("inf")),
        7: "seven",
    }
    assert redact(tree) == {
        "track": {"api_key": "<redacted>", "entity": "lab", "headers": [{"Authorization": "<redacted>"}, "x"]},
        "secret": "<redacted>",
        "password": "<redacted>",
        "tokenizer": "word",
        "n_tokens": 512,
        "proxy": "http://<redacted>@proxy:80/path",
        "dsn": "host=db user=me password=<redacted>",
        "rates": [0.1, None, True, float("inf")],
        7: "seven",
    }
    assert tree["track"]["api_key"] == SECRET  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"track.api_key={SECRET}", "track.api_key=<redacted>"),
        (f"+track.api_key='a b,{SECRET}'", "+track.api_key=<redacted>"),
        (f"++TOKEN = {SECRET}", "++TOKEN = <redacted>"),
        (f"track={{api_key:{SECRET},entity:lab}}", "track={api_key:<redacted>"),
        (f"track={{'entity': lab, 'api_key': '{SECRET}'}}", "track={'entity': lab, 'api_key': <redacted>"),
        (f"a=b=password={SECRET}", "a=b=password=<redacted>"),
        (f"https://host/x?size=3&access_token={SECRET}", "https://host/x?size=3&access_token=<redacted>"),
        (f"git+ssh://{SECRET}@host/x", "git+ssh://<redacted>@host/x"),
        (f"s3://me:p@{SECRET}@host", "s3://<redacted>@host"),
        ("${oc.env:WANDB_API_KEY}", "${oc.env:WANDB_API_KEY}"),
        ("strategy=[er,ewc]", "strategy=[er,ewc]"),
        ("https://host:80/a@b", "https://host:80/a@b"),
        ("git@host:group/project", "git@host:group/project"),
        ("n_tokens=3", "n_tokens=3"),
        ("password=", "password="),
    ],
)
def test_redact_text(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_redact_command_knows_options_with_the_value_after_them() -> None:
    words = ["continual", "run", "--password", SECRET, f"--api-key={SECRET}", "seed=1", f"x.token={SECRET}", "-m"]
    assert redact_command(words) == [
        *("continual", "run", "--password", "<redacted>", "--api-key=<redacted>", "seed=1", "x.token=<redacted>", "-m")
    ]
    assert redact_command([]) == []


def describe(**changes: Any) -> dict[str, Any]:
    config = {"seed": 0, "rate": "${base.rate}", "track": {"api_key": SECRET}}
    resolved = {"seed": 0, "rate": float("inf"), "track": {"api_key": SECRET}, "path": Path("a/b"), 3: float("nan")}
    arguments: dict[str, Any] = {
        "config": config,
        "resolved": resolved,
        "seed": 0,
        "threads": 1,
        "device": "cpu",
        "data_digest": None,
        "command": ["continual", f"track.api_key={SECRET}"],
    }
    return manifest(**{**arguments, **changes})


def test_a_manifest_is_strict_json_without_secrets() -> None:
    made = describe()
    text = json.dumps(made, allow_nan=False)
    assert SECRET not in text
    assert json.loads(text) == made
    assert made["format"] == 1
    assert made["created"].endswith("+00:00")
    assert yaml.safe_load(made["config"]) == {"seed": 0, "rate": "${base.rate}", "track": {"api_key": "<redacted>"}}
    assert made["resolved"] == {"seed": 0, "rate": "inf", "track": {"api_key": "<redacted>"}, "path": "a/b", "3": "nan"}
    assert made["command"] == ["continual", "track.api_key=<redacted>"]
    assert made["seed"] == 0
    assert made["python"] == ".".join(map(str, sys.version_info[:3]))


def test_versions_are_read_without_importing() -> None:
    program = "import sys; from continual.manifest import version; print(version('wandb'), 'wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(version("wandb")), "False"]
    assert version("no-such-package") is None
    assert describe()["versions"]["torch"] == version("torch")


def test_the_commit_is_none_outside_git_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == (None, None)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_whether_tracked_files_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git("init")
    assert commit(tmp_path) == (None, None)
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    (tmp_path / "untracked").touch()
    assert commit(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    monkeypatch.chdir(tmp_path)
    assert (describe()["commit"], describe()["dirty"]) == (git("rev-parse", "HEAD"), True)
    assert commit(tmp_path, without="docs")[1]
    git("commit", "-a", "-m", "two")
    assert [commit(tmp_path, untracked=some)[1] for some in (False, True)] == [False, True]
    git("add", "untracked")
    git("commit", "-m", "three")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "result").touch()
    assert [commit(tmp_path, untracked=True, without=some)[1] for some in (None, "docs")] == [True, False]


def test_outside_a_repository_the_code_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    here = commit(Path(__file__).parent)
    assert origin() == (describe()["commit"], describe()["dirty"]) == here
    monkeypatch.setattr("continual.manifest.__file__", str(tmp_path / "site-packages" / "manifest.py"))
    assert origin() == (None, None)
    monkeypatch.setattr("continual.manifest.__file__", str(Path(__file__).parent / "not_tracked.py"))
    assert origin() == (None, None), "an environment within a repository is not that repository's code"


LONG = """
import resource
from continual.manifest import REDACTED, redact_text
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))  # some ten times what it takes, and little of what squares take
for word, size in (("x", 400_000), ("a.", 400_000), ("@", 400_000), (" ", 400_000), ("://", 20_000), ("a=", 20_000)):
    text = word * (size // len(word))
    assert redact_text(text) == text
    assert redact_text(text + " token=abc") == text + " token=" + REDACTED
"""


def test_a_long_text_takes_time_in_proportion_to_it() -> None:
    """A message of a megabyte would else keep a run from ending for hours."""
    subprocess.run([sys.executable, "-c", LONG], check=True)
