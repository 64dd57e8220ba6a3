"""Operations that change the disk, each with what it must not lose and what it must come to."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from fault_run_cases import UPDATES, Quarantine, Resume, Save, Train, command, content, same
from fault_store_cases import Clear, Compact, Create, Rebuild, Write
from faulty_disk import Case, CommandError, Ended
from published_cases import published_checkpoint
from training_cases import make

from thinkers import build_model
from thinkers.comparison import results, runner
from thinkers.errors import ResourceError
from thinkers.export import folder as export_folder
from thinkers.export.folder import check_folder, write_folder
from thinkers.files import write_file
from thinkers.json_files import with_digest
from thinkers.research import experiment, loop
from thinkers.research.ledger import Ledger
from thinkers.runs.result import load
from thinkers.training.loop import train


class Import(Case):
    name = "import"

    def begin(self, folder: Path) -> None:
        published_checkpoint(folder)

    def act(self, folder: Path) -> None:
        command(
            *("import", "thinker", folder / "model.safetensors"),
            *("--settings", folder / "settings.json", "--out", folder / "out"),
        )
        print("imported", flush=True)

    def again(self, folder: Path) -> None:
        if not complete(folder / "out"):
            self.act(folder)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        is_there = complete(folder / "out") or "imported" not in ended.said
        return [] if is_there else ["the model that was imported is not there"]

    def result(self, folder: Path) -> Any:
        return content(folder / "out")


def complete(folder: Path) -> bool:
    """Return True for the folder of a whole model; raise DamagedError for a damaged one."""
    if not folder.exists():
        return False
    load(folder)
    return True


class ModelFolder(Case):
    """The weights of a model are replaced."""

    name = "model folder"

    def begin(self, folder: Path) -> None:
        small_model(0).save(folder / "model")

    def act(self, folder: Path) -> None:
        small_model(1).save(folder / "model")
        print("saved", flush=True)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        found = load(folder / "model").state_dict()
        seeds = (1,) if "saved" in ended.said else (0, 1)
        is_whole = any(same(found, small_model(seed).state_dict()) for seed in seeds)
        return [] if is_whole else ["the model is neither the old one nor the new one"]

    def result(self, folder: Path) -> Any:
        return content(folder)


def small_model(seed: int) -> Any:
    torch.manual_seed(seed)
    return build_model("decoder", vocab_size=5, dim=4, num_layers=1, num_heads=1)


class Export(Case):
    """An earlier export is replaced."""

    name = "export"
    names = frozenset(("config.json", "weights", "README.md"))

    def files(self, number: int) -> dict[str, bytes]:
        return {name: f"{name} of {number}".encode() * 100 for name in sorted(self.names)}

    def write(self, folder: Path, number: int) -> None:
        write_folder(
            check_folder(folder / "out", self.names, lambda path: True),
            self.files(number),
            self.names,
        )

    def begin(self, folder: Path) -> None:
        self.write(folder, 1)

    def act(self, folder: Path) -> None:
        self.write(folder, 2)
        print("exported", flush=True)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        # Between the two renames an earlier export has its name of a leftover.
        place = folder / "out" if (folder / "out").exists() else folder / ".out.old"
        numbers = (2,) if "exported" in ended.said else (1, 2)
        is_whole = any(content(place) == self.files(x) for x in numbers)
        return [] if is_whole else ["the export is neither the old one nor the new one"]

    def result(self, folder: Path) -> Any:
        return content(folder)


class ExportFails(Export):
    """The second of the two renames fails: the earlier export gets its name back."""

    name = "failed export"

    def act(self, folder: Path) -> None:
        rename = export_folder.rename_synced
        renames = iter([self.fail])
        export_folder.rename_synced = lambda *paths: next(renames, rename)(*paths)
        try:
            self.write(folder, 2)
        except ResourceError:
            print("failed", flush=True)
        finally:
            export_folder.rename_synced = rename

    @staticmethod
    def fail(*_: Path) -> Path:
        raise ResourceError("the disk is full")

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        is_back = content(folder / "out") == self.files(1) or "failed" not in ended.said
        return super().lost(folder, ended) + ([] if is_back else ["the earlier export is gone"])


class Command(Case):
    """A command of a run, and the file that it writes."""

    words: ClassVar[tuple[str, ...]]
    out: ClassVar[str] = ""

    def begin(self, folder: Path) -> None:
        train(make(settings=UPDATES), folder / "run", until=2)
        (folder / "settings.yaml").write_text("training:\n  lr: 0.001\n")
        (folder / "module_of_a_user.py").write_text("value = 3\n")

    def act(self, folder: Path) -> None:
        command(*(word.format(folder) for word in self.words))
        print("done", flush=True)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        if not self.out or "done" not in ended.said:
            return []
        return [] if json.loads((folder / self.out).read_bytes()) else ["an empty file"]

    def result(self, folder: Path) -> Any:
        return (folder / self.out).read_bytes() if self.out else None


class Evaluate(Command):
    name = "evaluate"
    words = ("evaluate", "{}/run", "--num_examples=2", "--out={}/run.json")
    out = "run.json"


class Generate(Command):
    name, loses_power = "generate", False
    words = ("generate", "{}/run", "--prompt=1=")


class Settings(Command):
    name, loses_power = "settings", False
    words = ("train", "copy/decoder", "--config={}/settings.yaml", "--dry_run")


class Module(Command):
    name, loses_power = "module", False
    words = ("train", "copy/decoder", "--import_module={}/module_of_a_user.py", "--print_config")


class Compare(Case):
    """One run of a comparison is missing."""

    name, every = "compare", (15, 40)

    def begin(self, folder: Path) -> None:
        self.compare(folder, budget="2updates", match="parameters", seeds=1, num_examples=5)
        shutil.rmtree(folder / "out" / "runs" / "looped-0")
        (folder / "out" / "report.html").unlink()

    def compare(self, folder: Path, **asked: Any) -> None:
        small = {"task.max_digits": 1, "model.dim": 8, "model.num_heads": 1}
        asked |= {"settings": small | {"training.batch_size": 2}} if asked else {"resume": True}
        names = () if asked.get("resume") else ("decoder", "looped")
        found = runner.compare("add", names, out=folder / "out", **asked)
        if found.failures:
            raise CommandError(found.exit_code, found.failures[0]["error"])

    def act(self, folder: Path) -> None:
        self.compare(folder)
        print("compared", flush=True)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        found = results.read(folder / "out")
        models = {"decoder"} | ({"looped"} if "compared" in ended.said else set())
        lost = [name for name in models if not found.results[name]]
        return [f"the result of {name} is gone" for name in lost]

    def result(self, folder: Path) -> Any:
        found = results.read(folder / "out").results
        page = (folder / "out" / "report.html").read_text()
        grades = {k: [x.grades[y].tolist() for x in v for y in x.grades] for k, v in found.items()}
        return grades, "</html>" in page


class Search(Case):
    """A search begins."""

    name, every = "search", (1, 6)

    def begin(self, folder: Path) -> None:
        pass

    def act(self, folder: Path) -> None:
        Research.experiment(folder)
        print("begun", flush=True)

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        return Research.kept(folder, 1) if "begun" in ended.said else []

    def again(self, folder: Path) -> None:
        if not (folder / "out" / "ledger.db").exists() or Research.kept(folder, 1):
            self.act(folder)

    def result(self, folder: Path) -> Any:
        return Research.kept(folder, 1)


class Research(Case):
    """An experiment of a search, with a changed file; its training is left out."""

    name, every = "research", (1, 4)

    def begin(self, folder: Path) -> None:
        self.experiment(folder, "--model.dim=16")
        (folder / "change.py").write_text("A = 1\n")

    def act(self, folder: Path) -> None:
        self.experiment(folder, files=[folder / "change.py"])
        print("kept", flush=True)

    def again(self, folder: Path) -> None:
        if self.kept(folder, 3):
            self.act(folder)

    @staticmethod
    def experiment(folder: Path, *flags: str, **own: Any) -> None:
        real = loop.run_all
        loop.run_all = Research.run_all
        try:
            loop.experiment("add/looped", folder / "out", 1.0, flags=flags, **own)
        finally:
            loop.run_all = real

    @staticmethod
    def run_all(commands: Any, *_: Any) -> None:
        for words, _log in commands:
            job = experiment.Job(**json.loads(words[-1]))
            write_file(job.result, with_digest({"metric": len(job.flags) + 2.0 * len(job.files)}))

    def lost(self, folder: Path, ended: Ended) -> list[str]:
        return self.kept(folder, 2 + ("kept" in ended.said))

    @staticmethod
    def kept(folder: Path, number: int) -> list[str]:
        """Return what the ledger has unless so many experiments were kept."""
        with Ledger(folder / "out") as ledger:
            found = [x.status for x in ledger.experiments()]
        return [] if found[:number] == ["keep"] * number else [f"the ledger has {found}"]

    def result(self, folder: Path) -> Any:
        with Ledger(folder / "out") as ledger:
            rows = [(x.number, x.base, x.status, x.metric) for x in ledger.experiments()]
        return rows, content(folder / "out" / "changes")


CASES = (Save, Quarantine, Resume, Train, Import, ModelFolder, Export, Evaluate, Generate, Settings)
CASES += (Module, Compare, Search, Research, Create, Write, Clear, Compact, Rebuild)
WRITING = (*(case for case in CASES if case.loses_power), ExportFails)
"""Operations that write something that must survive a loss of power."""


@contextmanager
def quick_pages() -> Iterator[None]:
    """Write pages without their figures, and few checkpoints of a comparison."""
    with (
        mock.patch("thinkers.comparison.plan.POINTS", 1),
        mock.patch("thinkers.report.html.drawing", lambda *_, **__: "<svg></svg>"),
    ):
        yield
