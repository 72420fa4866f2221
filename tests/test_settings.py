from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretBytes, SecretStr, field_validator, model_validator

from trackhub import settings
from trackhub.backend import BackendOptions, VendorVariable
from trackhub.errors import SettingsError
from trackhub.settings import Settings, backend_options, full_options, storable_options, without_credentials


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TRACKHUB_", "VENDOR_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def load(**arguments: Any) -> settings.Loaded:
    return settings.load(arguments, Path.cwd())


# --- the order of strength


ALL = {
    "backends": ("TRACKHUB_BACKENDS", "backends", "mlflow", ("mlflow",)),
    "project": ("TRACKHUB_PROJECT", "project", "p", "p"),
    "name": ("TRACKHUB_NAME", "name", "n", "n"),
    "run_id": ("TRACKHUB_RUN_ID", "run_id", "r", "r"),
    "dir": ("TRACKHUB_DIR", "dir", "d", Path("d")),
    "mode": ("TRACKHUB_MODE", "mode", "offline", "offline"),
    "finish_timeout": ("TRACKHUB_FINISH_TIMEOUT", "finish_timeout", "7", 7.0),
    "termination_timeout": ("TRACKHUB_TERMINATION_TIMEOUT", "termination_timeout", "9", 9.0),
    "ranks": ("TRACKHUB_RANKS", "ranks", "all", "all"),
    "max_bytes": ("TRACKHUB_MAX_BYTES", "max_bytes", "2kB", 2000),
}


def test_every_setting_is_in_the_table_above() -> None:
    assert list(ALL) == list(Settings.model_fields)


@pytest.mark.parametrize("field", ALL)
def test_arguments_win_over_variables_over_the_file_over_the_default(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, key, text, value = ALL[field]
    default = getattr(Settings(), field)
    assert getattr(load().settings, field) == default
    assert load().sources[field] == "default"
    Path("trackhub.toml").write_text(f'{key} = "{text}"\n')
    assert getattr(load().settings, field) == value
    assert load().sources[field] == str(Path("trackhub.toml").absolute())
    numbers = dict.fromkeys(("finish_timeout", "termination_timeout", "max_bytes"), "8")
    other = {"mode": "disabled", "ranks": "zero", **numbers}.get(field, "other")
    Path("trackhub.toml").write_text(f'{key} = "{other}"\n')
    monkeypatch.setenv(variable, text)
    assert getattr(load().settings, field) == value
    assert load().sources[field] == variable
    monkeypatch.setenv(variable, other)
    assert getattr(load(**{field: text}).settings, field) == value
    assert load(**{field: text}).sources[field] == "argument"
    assert load(**{field: None}).sources[field] == variable


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_MODE", "")
    assert load().settings.mode == "online"


@pytest.mark.parametrize("given", ["mlflow,tensorboard", " mlflow , tensorboard,", ["mlflow", "tensorboard", "mlflow"]])
def test_backends_are_names_with_commas_or_a_list_each_once(given: Any) -> None:
    assert load(backends=given).settings.backends == ("mlflow", "tensorboard")


# --- what is refused says where it came from and what would do


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TRACKHUB_MODE", "onlin",
         "mode (from TRACKHUB_MODE) = 'onlin' is not accepted: Input should be 'online', 'offline' or 'disabled'"),
        ("TRACKHUB_FINISH_TIMEOUT", "soon", "finish_timeout (from TRACKHUB_FINISH_TIMEOUT) = 'soon'"),
        ("TRACKHUB_FINISH_TIMEOUT", "-1", "greater than or equal to 0; set TRACKHUB_FINISH_TIMEOUT"),
        ("TRACKHUB_FINISH_TIMEOUT", "nan", "set TRACKHUB_FINISH_TIMEOUT"),
    ],
)  # fmt: skip
def test_a_bad_variable_is_named_with_what_is_accepted(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        load()
    assert message in str(raised.value)


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_MODE", "x")
    with pytest.raises(SettingsError) as raised:
        load(finish_timeout=-1, project="")
    lines = str(raised.value).split("\n")
    assert [line.split(" ")[0] for line in lines] == ["project", "mode", "finish_timeout"]
    assert "(from" not in lines[0]


@pytest.mark.parametrize("backends", [3, {"mlflow": {}}, [1], [None]])
def test_backends_that_are_no_names_are_refused(backends: Any) -> None:
    with pytest.raises(SettingsError, match="backends = "):
        load(backends=backends)


def test_a_setting_the_file_does_not_know_is_refused_with_those_there_are() -> None:
    Path("trackhub.toml").write_text('projet = "x"\n')
    with pytest.raises(SettingsError) as raised:
        load()
    assert f"{Path('trackhub.toml').absolute()}: no such setting: projet" in str(raised.value)
    assert "backends, dir, finish_timeout, max_bytes, mode, name, project, ranks, run_id" in str(raised.value)


def test_a_file_that_is_no_toml_is_refused_by_name() -> None:
    Path("trackhub.toml").write_text("project = ")
    with pytest.raises(SettingsError, match=r"trackhub\.toml cannot be read"):
        load()


# --- which file


@pytest.mark.parametrize("content", ["tool = 5", "tool = []", "[tool]\ntrackhub = 5"])
def test_a_pyproject_whose_tools_are_no_table_has_nothing_for_us(content: str) -> None:
    Path("pyproject.toml").write_text(content)
    assert load().file is None


def test_a_directory_may_be_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRACKHUB_DIR", "~/runs")
    assert load().settings.dir == tmp_path / "runs"
    assert load(dir="~/others").settings.dir == tmp_path / "others"
    with pytest.raises(SettingsError, match=r"dir = '~nobody-of-this-name/x' is not accepted"):
        load(dir="~nobody-of-this-name/x")


def test_the_nearest_file_upward_counts_and_a_pyproject_without_our_table_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    (tmp_path / "pyproject.toml").write_text('[tool.trackhub]\nproject = "outer"\n[tool.trackhub.mlflow]\nx = 1\n')
    assert load().settings.project == "outer"
    assert load().tables == {"mlflow": {"x": 1}}
    (inner / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (tmp_path / "a" / "pyproject.toml").write_text("this = is no toml")
    assert load().settings.project == "outer"
    (tmp_path / "a" / "trackhub.toml").write_text('project = "middle"\n')
    assert load().settings.project == "middle"
    assert load().file == tmp_path / "a" / "trackhub.toml"
    (inner / "pyproject.toml").write_text('[tool.trackhub]\nproject = "inner"\n')
    assert load().settings.project == "inner"
    (inner / "trackhub.toml").write_text('project = "own"\n')
    assert load().settings.project == "own"


# --- a backend's options


class Nested(BackendOptions):
    name: str = ""
    secret: SecretStr = SecretStr("")


class Options(BackendOptions):
    url: Annotated[str | None, VendorVariable("VENDOR_URL")] = None
    hosts: list[str] = Field(default=[])
    tags: tuple[str, ...] | None = None
    timeout_seconds: int = Field(default=30, ge=1)
    verify: bool = True
    token: Annotated[SecretStr | None, VendorVariable("VENDOR_TOKEN")] = None
    auth: SecretStr | None = None
    headers: dict[str, SecretStr] = Field(default={})
    keys: list[SecretBytes] = Field(default=[])
    nested: Nested = Nested()
    folder: Path = Path("x")


class Picky(BackendOptions):
    needed: str
    apikey: SecretStr | None = None
    level: int = 1

    @field_validator("level")
    @classmethod
    def _small(cls, value: int) -> int:
        if value > 3:
            raise ValueError("there are three levels")
        return value

    @model_validator(mode="after")
    def _together(self) -> Picky:
        if self.needed == "key" and self.apikey is None:
            raise ValueError("needed='key' takes an apikey")
        return self


def options(arguments: dict[str, Any] | None = None, table: dict[str, Any] | None = None) -> Any:
    return backend_options("my-lab", Options, arguments or {}, table or {}, Path("trackhub.toml"))[0]


def test_an_option_comes_from_arguments_our_variable_the_vendors_the_file_and_the_default_in_that_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert options().url is None
    assert options(table={"url": "file"}).url == "file"
    monkeypatch.setenv("VENDOR_URL", "vendor")
    assert options(table={"url": "file"}).url == "vendor"
    monkeypatch.setenv("TRACKHUB_MY_LAB_URL", "ours")
    assert options(table={"url": "file"}).url == "ours"
    assert options({"url": "argument"}, {"url": "file"}).url == "argument"
    assert options({"url": None}, {"url": "file"}).url == "ours"


def test_the_source_of_each_option_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENDOR_TOKEN", "t")
    monkeypatch.setenv("TRACKHUB_MY_LAB_VERIFY", "no")
    read, sources = backend_options("my-lab", Options, {"url": "u"}, {"folder": "f"}, Path("/x/trackhub.toml"))
    assert (read.verify, read.folder, read.token.get_secret_value()) == (False, Path("f"), "t")
    assert sources == {
        "url": "init(my-lab={'url': ...})",
        "verify": "TRACKHUB_MY_LAB_VERIFY",
        "token": "VENDOR_TOKEN",
        "folder": "/x/trackhub.toml",
    }


def test_lists_in_variables_are_written_with_commas_also_where_none_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_MY_LAB_HOSTS", "a, b,")
    monkeypatch.setenv("TRACKHUB_MY_LAB_TAGS", "one")
    assert options().hosts == ["a", "b"]
    assert options().tags == ("one",)


@pytest.mark.parametrize("source", ["init", "file"])
def test_an_unknown_option_is_refused_with_the_nearest_name_and_its_source(source: str) -> None:
    given = {"timeout_second": 3}
    with pytest.raises(SettingsError) as raised:
        options(given) if source == "init" else options(table=given)
    where = "init(my-lab={...})" if source == "init" else "trackhub.toml"
    assert str(raised.value).startswith(
        f"{where}: backend 'my-lab' has no option 'timeout_second'; did you mean 'timeout_seconds'? (options are: auth"
    )


def refused(arguments: dict[str, Any], kind: type[BackendOptions] = Picky) -> str:
    with pytest.raises(SettingsError) as raised:
        backend_options("lab", kind, arguments, {}, None)
    assert raised.value.__cause__ is None
    return str(raised.value)


def test_a_missing_option_is_named_with_both_ways_to_give_it() -> None:
    assert refused({}) == "backend 'lab' needs needed: set TRACKHUB_LAB_NEEDED or pass init(lab={'needed': ...})"


def test_a_value_that_is_not_accepted_is_shown_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKHUB_LAB_LEVEL", "9")
    assert refused({"needed": "x"}) == (
        "lab: level (from TRACKHUB_LAB_LEVEL) = '9' is not accepted: there are three levels; set TRACKHUB_LAB_LEVEL"
    )


def test_options_that_do_not_go_together_are_said_in_the_backends_words() -> None:
    assert refused({"needed": "key"}) == "lab: needed='key' takes an apikey"


@pytest.mark.parametrize("name", ["token", "auth", "headers", "keys"])
def test_a_secret_is_not_shown_in_a_message_whatever_its_option_is_called(name: str) -> None:
    message = refused({name: 123456789}, Options)
    assert "(hidden)" in message
    assert "123456789" not in message


def test_credentials_in_a_url_are_not_shown_in_a_message() -> None:
    message = refused({"timeout_seconds": "https://ann:pass@host/"}, Options)
    assert "'https://host/'" in message


# --- what is written down


SECRETS = {
    "token": "s-token",
    "auth": "s-auth",
    "headers": {"X": "s-header"},
    "keys": [b"s-key"],
    "nested": {"name": "plain", "secret": "s-nested"},
    "url": "https://ann:s-password@host:80/path",
    "hosts": ["postgresql://u:s-p@ss@h/db", "http://h/?api_key=s-query&page=2"],
    "folder": "f",
}


def test_nothing_secret_is_stored_however_deep_it_is() -> None:
    read = options(SECRETS)
    stored = storable_options(read)
    assert stored == {
        "url": "https://host:80/path",
        "hosts": ["postgresql://h/db", "http://h/?&page=2"],
        "folder": "f",
    }
    assert "s-" not in repr(stored)
    assert "*" not in repr(stored)


def test_the_delivery_process_is_given_every_secret_and_reads_the_same_options() -> None:
    read = options(SECRETS)
    full = full_options(read)
    assert full["headers"] == {"X": "s-header"}
    assert full["keys"] == ["s-key"]
    assert full["nested"] == {"name": "plain", "secret": "s-nested"}
    assert Options.model_validate(full) == read


def test_defaults_are_not_stored_so_that_a_later_default_counts() -> None:
    assert storable_options(options()) == {}
    assert full_options(options({"timeout_seconds": 30})) == {}


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://u:p@h:80/a?b=c#d", "https://h:80/a?b=c#d"),
        ("https://token@h", "https://h"),
        ("mysql+pymysql://u:p@w@h/db", "mysql+pymysql://h/db"),
        ("postgresql://u:p/w@h/db", "postgresql://h/db"),
        ("https://h/@user/x:y", "https://h/@user/x:y"),
        ("https://h:443/@user", "https://h:443/@user"),
        ("https://[::1]:80/@user", "https://[::1]:80/@user"),
        ("https://u:p@[::1]:80/", "https://[::1]:80/"),
        ("https://h/?access_token=x&b=1", "https://h/?&b=1"),
        ("https://h/?a=1&Password=x", "https://h/?a=1&"),
        ("https://h/?sig=abc&design=round", "https://h/?&design=round"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("databricks://profile", "databricks://profile"),
        ("ann@example.org", "ann@example.org"),
        ("file:///x/a@b", "file:///x/a@b"),
        (3, 3),
        (None, None),
    ],
)
def test_credentials_are_taken_out_of_urls_and_the_rest_stays(url: Any, stored: Any) -> None:
    assert without_credentials(url) == stored
    assert without_credentials({"x": [url]}) == {"x": [stored]}


_word = st.text("abcXYZ019-_.~!$&'()*+,;=%", min_size=1, max_size=12)
_host = st.sampled_from(["h", "h:80", "[::1]", "[::1]:8"])


@given(st.text("abc", min_size=1), _word, _host, st.sampled_from(["", "/p/q"]))
def test_no_user_and_password_survive(user: str, password: str, host: str, path: str) -> None:
    assert without_credentials(f"https://{user}:{password}@{host}{path}") == f"https://{host}{path}"


def test_the_delivery_process_does_not_claim_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("VENDOR_URL", "kept")
    environment = settings.delivery_environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["VENDOR_URL"] == "kept"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
