from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_helpers import run_python

import trackhub
from trackhub.blobs import BlobStore, check_regular, describe
from trackhub.records import StoredFile


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "run" / "blobs").mkdir(parents=True)
    return tmp_path / "runs" / "run"


@pytest.fixture
def store(run: Path) -> BlobStore:
    return BlobStore(run / "blobs", "0001")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of files, links and directories, in the working tree beside the runs."""
    folder = tmp_path / "model"
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (folder / "deep" / "größe 1.txt").write_text("x")
    (folder / "link.txt").symlink_to("deep/größe 1.txt")
    (folder / "linked").symlink_to("deep")
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(content=st.binary(max_size=3000), prefix=st.sampled_from(["0001", "0012"]))
def test_stored_bytes_are_read_back_from_the_path_in_the_record(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, prefix: str
) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / "blobs").mkdir()
    file = BlobStore(run / "blobs", prefix).store(content, ".png", "image/png")
    assert (run / file.path).read_bytes() == content
    assert file == StoredFile(f"blobs/{prefix}-000001.png", len(content), media_type="image/png")
    assert [path.name for path in (run / "blobs").iterdir()] == [f"{prefix}-000001.png"]


def test_threads_and_writers_that_store_at_once_get_files_of_their_own(run: Path) -> None:
    stores = [BlobStore(run / "blobs", prefix) for prefix in ("0001", "0002")]
    files: list[tuple[StoredFile, bytes]] = []

    def log(thread: int) -> None:
        for number in range(50):
            content = f"{thread} {number}".encode()
            files.append((stores[thread % 2].store(content, ".txt", "text/plain"), content))

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({file.path for file, _ in files}) == 400
    assert all((run / file.path).read_bytes() == content for file, content in files)


def test_a_snapshot_of_a_file_stays_what_the_file_was(run: Path, store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "metrics.csv"
    source.write_text("before")
    file = store.snapshot(source)
    source.write_text("changed since")
    assert (run / file.path).read_text() == "before"
    assert file == StoredFile("blobs/0001-000001/metrics.csv", 6, media_type="text/csv")
    source.unlink()
    assert (run / file.path).read_text() == "before"


def test_a_snapshot_of_a_directory_has_its_files_its_links_content_and_their_size(
    run: Path, store: BlobStore, folder: Path
) -> None:
    before = content_of(folder) | {"linked/größe 1.txt": b"x"}
    file = store.snapshot(folder)
    (folder / "weights.bin").write_bytes(b"")
    copy = run / file.path
    assert content_of(copy) == before
    assert (copy / "deep" / "empty").is_dir()
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    assert file.is_directory
    assert file.size_bytes == 25_600 + 3


def test_a_link_is_followed_and_keeps_the_name_it_was_logged_under(run: Path, store: BlobStore, tmp_path: Path) -> None:
    """The caches of Hugging Face and DVC hold files under their hash, with links that bear their names."""
    (tmp_path / "5f3c9a").write_text("{}")
    (tmp_path / "config.json").symlink_to("5f3c9a")
    file = store.snapshot(tmp_path / "config.json")
    assert file == StoredFile("blobs/0001-000001/config.json", 2, media_type="application/json")
    assert not (run / file.path).is_symlink()


@pytest.mark.parametrize("path", [".", "..", "deep/.."])
def test_a_directory_without_a_name_of_its_own_gets_that_of_the_directory_it_is(
    run: Path, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (folder / "linked").unlink()
    monkeypatch.chdir(folder / "deep" if path == ".." else folder)
    file = store.snapshot(Path(path))
    assert file.path == "blobs/0001-000001/model"
    assert (run / file.path / "weights.bin").exists()


def test_a_directory_that_holds_the_run_is_copied_without_it(
    run: Path, store: BlobStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`log_artifact(".")`, with the runs below the working directory, as is the default.

    Without the runs beside it, too: each of them may hold such a copy, and the disk would double with each run. What
    lies there and is no run of that directory is the user's, and is copied.
    """
    store.store(b"earlier", ".txt", "text/plain")
    (tmp_path / "runs" / "another").mkdir()
    (tmp_path / "runs" / "another" / "run.json").write_text("{}")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes" / "read me").write_text("kept")
    (folder / "another").mkdir()
    (folder / "another" / "run.json").write_text("{}")
    (folder / "run").mkdir()
    (folder / "run" / "same name").write_text("kept")
    monkeypatch.chdir(tmp_path)
    file = store.snapshot(Path())
    copy = run / file.path
    names = ("weights.bin", "deep/größe 1.txt", "link.txt", "linked/größe 1.txt", "run/same name")
    others = {"runs/notes/read me", "model/another/run.json"}
    assert set(content_of(copy)) == {*others, *(f"model/{name}" for name in names)}
    assert file.size_bytes == 25_600 + 3 + 4 + 4 + 2 == store.measure(Path())


def test_another_run_can_be_logged_by_its_path(run: Path, store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "runs" / "another").mkdir()
    (tmp_path / "runs" / "another" / "run.json").write_text("{}")
    file = store.snapshot(tmp_path / "runs" / "another")
    assert set(content_of(run / file.path)) == {"run.json"}


def test_the_working_directory_logged_by_each_run_takes_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(100_000))
    monkeypatch.chdir(tmp_path)
    sizes = []
    for _ in range(3):
        with trackhub.init(mode="offline", dir=".trackhub") as tracker:
            tracker.log_artifact(".")
        sizes.append(sum(len(content) for content in content_of(tracker.directory / "blobs").values()))
    assert sizes == [100_000] * 3


@pytest.mark.parametrize("log", [trackhub.Tracker.log_artifact, trackhub.Tracker.log_model])
def test_an_empty_path_is_refused(tmp_path: Path, log: Callable[[trackhub.Tracker, str], None]) -> None:
    with (
        trackhub.init(mode="offline", dir=tmp_path / "hub") as tracker,
        pytest.raises(ValueError, match="is empty"),
    ):
        log(tracker, "")


@pytest.mark.parametrize("below", ["", "blobs"])
def test_the_run_directory_cannot_be_logged_to_its_own_run(run: Path, store: BlobStore, below: str) -> None:
    with pytest.raises(ValueError, match="is the run directory itself"):
        store.snapshot(run / below)
    assert list((run / "blobs").iterdir()) == []


def test_nothing_at_the_path_is_said_with_where_it_was_looked_for(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or directory '.*model\.bin' to log \(looked in "):
        store.snapshot(tmp_path / "model.bin")


def test_a_link_to_nothing_inside_a_directory_raises_and_leaves_nothing(
    run: Path, store: BlobStore, folder: Path
) -> None:
    (folder / "gone").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="gone"):
        store.snapshot(folder)
    assert list((run / "blobs").iterdir()) == []


@pytest.mark.parametrize("inside", [False, True])
def test_a_pipe_is_refused_at_once_and_not_waited_for(run: Path, store: BlobStore, folder: Path, inside: bool) -> None:
    pipe = folder / "deep" / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe' is neither a file nor a directory"):
        store.snapshot(folder if inside else pipe)
    assert list((run / "blobs").iterdir()) == []


@pytest.mark.parametrize("links", [{"self": "."}, {"deep/up": ".."}, {"deep/x": "../other", "other/y": "../deep"}])
def test_links_that_lead_in_a_circle_are_refused_by_name(
    run: Path, store: BlobStore, folder: Path, links: dict[str, str]
) -> None:
    (folder / "other").mkdir()
    for name, target in links.items():
        (folder / name).symlink_to(target)
    with pytest.raises(ValueError, match="is a link to a directory it lies in"):
        store.snapshot(folder)
    assert list((run / "blobs").iterdir()) == []


def test_a_file_that_does_not_tell_its_size_is_copied_whole(run: Path, store: BlobStore) -> None:
    file = store.snapshot(Path("/proc/self/status"))
    copy = (run / file.path).read_text()
    assert f"Pid:\t{os.getpid()}" in copy
    assert file.size_bytes == len(copy)


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("copied", [0, 1000])
def test_where_the_kernel_cannot_copy_the_bytes_are_read_and_written(
    run: Path, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch, error: int, copied: int
) -> None:
    """Also if it fails half-way."""
    genuine, left = os.copy_file_range, [copied]

    def copy_file_range(source: int, target: int, count: int) -> int:
        if not left[0]:
            raise OSError(error, os.strerror(error))
        done = genuine(source, target, min(count, left[0]))
        left[0] = 0
        return done

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    file = store.snapshot(folder / "weights.bin")
    assert (run / file.path).read_bytes() == (folder / "weights.bin").read_bytes()


def test_a_kernel_that_copies_piece_by_piece_copies_all(
    run: Path, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda source, target, count: genuine(source, target, min(count, 999)))
    file = store.snapshot(folder / "weights.bin")
    assert (run / file.path).read_bytes() == (folder / "weights.bin").read_bytes()


FULL_DISK = """
import resource, sys
from pathlib import Path
from trackhub.blobs import BlobStore, NotStoredError
blobs = Path(sys.argv[1])
store = BlobStore(blobs, "0001")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for attempt in (lambda: store.snapshot(Path(sys.argv[2])), lambda: store.store(bytes(2000), ".bin", "x/y")):
    try: attempt()
    except NotStoredError: print("refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(store.snapshot(Path(sys.argv[2])).size_bytes)
"""


def test_a_full_disk_raises_and_leaves_nothing_that_looks_whole(run: Path, folder: Path) -> None:
    assert run_python(FULL_DISK, run / "blobs", folder).split() == ["refused", "refused", "25603"]
    assert [path.name for path in (run / "blobs").iterdir() if path.suffix != ".new"] == ["0001-000003"]


def test_syncing_passes_over_what_a_delivery_has_freed_and_tries_again_what_failed(
    run: Path, store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = store.store(b"1", ".txt", "text/plain")
    kept = store.store(b"2", ".txt", "text/plain")
    (run / gone.path).unlink()
    synced: list[str] = []

    def fdatasync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if len(synced) == 1:
            raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(OSError, match="disk"):
        store.sync()
    store.snapshot(folder / "deep")
    store.sync()
    store.sync()
    assert synced == [Path(kept.path).name] * 2 + ["größe 1.txt"]


def test_a_file_that_cannot_be_synced_keeps_no_other_from_it_and_is_named(
    run: Path, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [Path(store.store(b"x", ".txt", "text/plain").path).name for _ in range(5)]
    bad, synced = {names[1], names[3]}, []

    def fdatasync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if name in bad:
            raise OSError(errno.EIO, "disk")
        synced.append(name)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(OSError, match=f"disk: '.*{names[1]}'"):
        store.sync()
    assert synced == [names[0], names[2], names[4]]
    bad.remove(names[1])
    with pytest.raises(OSError, match=f"disk: '.*{names[3]}'"):
        store.sync()
    bad.clear()
    store.sync()
    store.sync()
    assert synced == [names[0], names[2], names[4], names[1], names[3]]


def test_what_a_record_says_of_a_file_that_is_not_copied(folder: Path) -> None:
    assert describe(folder / "deep", "/x/deep") == StoredFile("/x/deep", 1, is_directory=True)
    assert describe(folder / "link.txt", "t") == StoredFile("t", 1, media_type="text/plain")
    assert describe(folder / "weights.bin", "w").media_type == "application/octet-stream"


def test_a_device_is_no_file_to_log() -> None:
    with pytest.raises(ValueError, match="'/dev/zero' is neither a file nor a directory"):
        check_regular(Path("/dev/zero"))
