"""Push: a student into a repository of the Hugging Face hub, in one commit, laid out for `hf://owner/name`.

The repository gets README.md, cards/NAME.json, weights/FILE, model-index.yml, results/RECORD.json and, where the hub
has the data set, .eval_results/NAME.yaml. A repository is for one student: its page shows one card.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.engine.record import RunRecord, read_record, record_path
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError
from limbeck.zoo.card import Card
from limbeck.zoo.hub_errors import HubError, hub_errors
from limbeck.zoo.index import CARDS, WEIGHTS, find, weights_path
from limbeck.zoo.metafile import render_metafile
from limbeck.zoo.model_card import eval_results_yaml, record_file, reference, render_model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class PushFile:
    """A file of a push.

    path: in the repository. source: the bytes, or the file that has them.
    """

    path: str
    source: bytes | Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    url: of the commit. reference: what `limbeck.load_student` takes.
    """

    url: str
    reference: str
    files: list[PushFile]


def push_files(
    name: str,
    repo: str,
    *,
    revision: str | None = None,
    results: str | Path = "results",
    dataset: str | None = None,
    task_id: str | None = None,
    teacher_repo: str | None = None,
    zoo_dir: str | Path | None = None,
) -> list[PushFile]:
    """The files that a push writes; nothing is sent. The weights' hash is checked first.

    Args:
        repo: 'owner/name'.
        revision: branch of the repository; its main one where not given.
        results: folder of records that has the student's.
        dataset: the hub's id of the benchmark's data set, and `task_id` the task in its eval.yaml; without an id,
            and where none is known, no .eval_results file is written.
        teacher_repo: the hub's id of the teacher.
    Raises: UnknownName; CorruptFile for weights that are not the card's, or a record that it does not quote;
        ConfigError without a record.
    """
    reference(repo, revision)
    for given in (dataset, teacher_repo):
        if given is not None:
            reference(given)
    card = find(name, zoo_dir=zoo_dir)
    weights = weights_path(name, zoo_dir=zoo_dir)
    record = record_of(card, results)
    place: dict[str, Any] = dict(repo=repo, revision=revision, dataset=dataset)
    readme = str(render_model_card(card, record, **place, teacher_repo=teacher_repo))
    metafile = render_metafile([card], records={record.id: record}, repo=repo, revision=revision or "")
    texts = {
        "README.md": readme,
        f"{CARDS}/{card.name}.json": _json(card.model_dump(mode="json")),
        "model-index.yml": metafile,
        record_file(record): _json(record.model_dump(mode="json")),
    }
    evaluated = eval_results_yaml(card, record, **place, task_id=task_id)
    if evaluated is not None:
        texts[f".eval_results/{card.name}.yaml"] = evaluated
    files = [_text_file(path, text) for path, text in texts.items()]
    files.append(PushFile(f"{WEIGHTS}/{card.file}", weights, weights.stat().st_size, sha256_file(weights)))
    return sorted(files, key=lambda file: file.path)


def push_student(
    name: str,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    **options: Any,
) -> Pushed:
    """Push a student with one commit; the repository and the branch are made where they are not there.

    The token is that of huggingface_hub: HF_TOKEN, or what `hf auth login` stored.

    Args:
        private: of a repository that this makes; an older one stays as it is.
        options: those of `push_files`.
    Raises: what `push_files` raises; HubError without a token or permission, where the hub cannot be reached, or when
        the repository has another student.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    files = push_files(name, repo, revision=revision, **options)
    failed = f"{name} is not pushed to {repo}"
    if get_token() is None:
        raise HubError(f"{failed}: there is no token; run `hf auth login` or set HF_TOKEN")
    api = HfApi(library_name="limbeck")
    with hub_errors(failed):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        old = _old_files(api, name, repo, revision, {file.path for file in files})
        operations = [
            *(CommitOperationAdd(file.path, file.source) for file in files),
            *(CommitOperationDelete(path) for path in old),
        ]
        said = message or f"{name}, by limbeck"
        commit = api.create_commit(repo, operations, commit_message=said, revision=revision)
    return Pushed(str(commit.commit_url), reference(repo, revision), files)


def _old_files(api: HfApi, name: str, repo: str, revision: str | None, new: set[str]) -> list[str]:
    """Weights, record and results of an older push of this student, which nothing names any more.

    Raises: HubError when the repository has the card of another student.
    """
    there = api.list_repo_files(repo, revision=revision)
    cards = [path for path in there if path.startswith(f"{CARDS}/") and path.endswith(".json")]
    other = [path for path in cards if path != f"{CARDS}/{name}.json"]
    if other:
        raise HubError(f"{name} is not pushed to {repo}: it has {Path(other[0]).stem}; a repository is for one student")
    ours = (f"{WEIGHTS}/", "results/", ".eval_results/")
    return [path for path in there if cards and path.startswith(ours) and path not in new]


def record_of(card: Card, results: str | Path) -> RunRecord:
    """The record that a card quotes, from a folder of records.

    Raises: ConfigError where it is not there; CorruptFile for a damaged one.
    """
    if not all(part.strip(".") for part in card.record.split("/")):
        raise ConfigError(f"the card of {card.name} names the record {card.record!r}, which is no path below a folder")
    path = record_path(results, card.record)
    if not path.is_file():
        raise ConfigError(f"{path}: the record of {card.name} is not there; name the folder that has it with --results")
    return read_record(path)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _text_file(path: str, text: str) -> PushFile:
    content = text.encode()
    return PushFile(path, content, len(content), hashlib.sha256(content).hexdigest())
