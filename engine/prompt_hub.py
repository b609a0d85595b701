"""Data sets of the hub as files: which of them hold a split, downloaded or from this machine's cache.

Only data files are read (Parquet, CSV, JSON lines); a data set that needs code of its own has none and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.repocard import metadata_load

from engine.prompt_files import UnreadableFile
from engine.prompt_reference import HubDataset

_SUFFIXES = (".parquet", ".jsonl", ".csv", ".json")
_SPLITS = ("train", "validation", "valid", "dev", "test")
_TIMEOUT_SECONDS = 15.0
_CARD = "README.md"
# train-00000-of-00002.parquet; behind it there may be a hash, another one for each part.
_PART = re.compile(r"(?P<begin>.*?)(?P<number>[0-9]{5,})-of-(?P<total>[0-9]{5,})")


@dataclass(frozen=True)
class HubFiles:
    """The files of a split, in their order, and the commit that they are of."""

    commit: str
    paths: list[Path]


def hub_files(dataset: HubDataset) -> HubFiles:
    """The data files of a split, downloaded if need be; UnreadableFile when it or the hub cannot be reached."""
    commit, names, local = _listed(dataset)
    fetched = partial(_fetched, dataset, commit, local)
    card = _card(fetched(_CARD)) if _CARD in names else {}
    chosen = split_files(names, card, dataset)
    if local is not None:
        _require_every_part(chosen)
    return HubFiles(commit, [fetched(name) for name in chosen])


def local_files(folder: Path, dataset: HubDataset) -> HubFiles:
    """The data files of a split in a local copy, laid out as on the hub or a single file; no commit is known of it."""
    if not folder.is_dir():
        raise UnreadableFile(f"has the folder {str(folder)!r}, which is not on this machine; correct it")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    data = [name for name in names if name.lower().endswith(_SUFFIXES)]
    if len(data) == 1:
        return HubFiles("", [folder / data[0]])
    card = _card(folder / _CARD) if _CARD in names else {}
    return HubFiles("", [folder / name for name in split_files(names, card, dataset)])


def _listed(dataset: HubDataset) -> tuple[str, list[str], Path | None]:
    """Commit, names of all files, and the folder of the snapshot when the hub was not asked."""
    try:
        info = HfApi().dataset_info(dataset.repository, revision=dataset.revision, timeout=_TIMEOUT_SECONDS)
    except (RepositoryNotFoundError, GatedRepoError):
        raise UnreadableFile(
            "the hub does not show (it does not exist, or needs a login that this worker lacks)"
        ) from None
    except RevisionNotFoundError:
        raise UnreadableFile(f"has no revision {dataset.revision!r}; name a branch, tag or commit of it") from None
    except Exception as error:  # no network, a proxy's page, HF_HUB_OFFLINE: the cache may still have it
        return *_cached(dataset, error), _snapshot_folder(dataset)
    return str(info.sha), sorted(sibling.rfilename for sibling in info.siblings or []), None


def _cached(dataset: HubDataset, error: Exception) -> tuple[str, list[str]]:
    folder = _snapshot_folder(dataset)
    if folder is None:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UnreadableFile(
            f"is neither in this machine's cache nor can the hub be reached ({reason}); "
            "connect it, or copy the cache of a machine that has the data set"
        ) from None
    return folder.name, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _require_every_part(names: Sequence[str]) -> None:
    """Of files that say how many they are, all must be cached: an interrupted download leaves some, which are no whole split."""
    there: dict[tuple[str, int], set[int]] = {}
    for name in names:
        part = _PART.match(name)
        if part is not None:
            there.setdefault((part["begin"], int(part["total"])), set()).add(int(part["number"]))
    for (begin, total), numbers in there.items():
        if len(numbers) < total:
            raise UnreadableFile(
                f"has only {len(numbers)} of the {total} files {begin}… in this machine's cache, and the hub cannot be reached; "
                "connect it, or copy the cache of a machine that has all of them"
            )


def _snapshot_folder(dataset: HubDataset) -> Path | None:
    """The cached snapshot that a revision means; layout: refs/<revision> names a commit, snapshots/<commit> holds files."""
    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=dataset.repository, repo_type="dataset")
    revision = dataset.revision or "main"
    reference = root / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = root / "snapshots" / commit
    return folder if re.fullmatch(r"[0-9a-f]{40}", commit) and folder.is_dir() else None


def _fetched(dataset: HubDataset, commit: str, local: Path | None, name: str) -> Path:
    if local is not None:
        path = local / name
        # Files of a snapshot are links to blobs beside it; a link that leads elsewhere is not of the hub's making.
        if not path.resolve().is_relative_to(local.parent.parent.resolve()):
            raise UnreadableFile(f"has a file {name!r} in the cache that leads out of it; fetch it again")
        return path
    try:
        return Path(hf_hub_download(dataset.repository, name, repo_type="dataset", revision=commit))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UnreadableFile(f"has a file {name!r} that cannot be downloaded ({reason}); try again") from error


def _card(path: Path) -> Mapping[str, Any]:
    try:
        found = metadata_load(path)
    except Exception:  # any YAML error: the names of the files say enough for most data sets
        return {}
    return found if isinstance(found, dict) else {}


def split_files(names: Sequence[str], card: Mapping[str, Any], dataset: HubDataset) -> list[str]:
    """The files of a split: as the card's `configs` say, or else by folder and file names, as the hub does itself.

    Raises UnreadableFile with what there is.
    """
    data = [name for name in names if name.lower().endswith(_SUFFIXES)]
    configs = [one for one in card.get("configs") or [] if isinstance(one, dict) and "data_files" in one]
    if configs:
        patterns = _patterns(_config(configs, dataset)["data_files"], dataset.split)
        chosen = [name for name in data if any(fnmatchcase(name, pattern) for pattern in patterns)]
    else:
        inside = [name for name in data if dataset.subset is None or dataset.subset in name.split("/")[:-1]]
        named = [name for name in inside if _names_split(name, dataset.split)]
        is_split = any(_names_split(name, split) for name in inside for split in _SPLITS)
        chosen = named if named or is_split or dataset.split != "train" else inside
    for suffix in _SUFFIXES:  # the same rows may be there in several formats
        of_format = [name for name in chosen if name.lower().endswith(suffix)]
        if of_format:
            return of_format
    shown = ", ".join(data[:5]) + (", …" if len(data) > 5 else "")
    raise UnreadableFile(
        f"has no data files for split {dataset.split!r}{f' of {dataset.subset!r}' if dataset.subset else ''} "
        f"(it has {shown or 'no data files'}); add ?split=… or &subset=…"
    )


def _names_split(name: str, split: str) -> bool:
    return re.search(rf"(^|[/._-]){re.escape(split)}([/._-]|$)", name) is not None


def _config(configs: Sequence[Mapping[str, Any]], dataset: HubDataset) -> Mapping[str, Any]:
    names = [str(one.get("config_name", "default")) for one in configs]
    if dataset.subset in names:
        return configs[names.index(str(dataset.subset))]
    default = [one for one, name in zip(configs, names, strict=True) if one.get("default") or name == "default"]
    if dataset.subset is None and (default or len(configs) == 1):
        return (default or list(configs))[0]
    raise UnreadableFile(f"has the subsets {', '.join(names[:12])}; add one as &subset=… to the reference")


def _patterns(data_files: object, split: str) -> list[str]:
    """Of `data_files` in any of its forms: a path, a list of paths (all are train), or objects with `split` and `path`."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: list[str] = []
    for entry in entries:
        of_split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        if of_split == split:
            patterns += [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    return patterns
