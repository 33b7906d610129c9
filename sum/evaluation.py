"""A model through a suite: every image's rows, in the same bytes whatever the threads, processes and machines."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import cv2
import torch

from sum.bench import Opened, open_image
from sum.data.records import ImageRecord, MaskRecord, encode_mask
from sum.data.score_tables import EVERYTHING, FIDELITY, GENERATED, MAPS, PREDICTIONS, ROWS, UNSPECIFIED
from sum.data.timings import TIMES
from sum.models.doubts import doubts
from sum.models.everything import nearest
from sum.models.fidelity import examine
from sum.models.generator import Batches, generate
from sum.models.interact import Answer, play
from sum.models.refiner import Refiner
from sum.models.segmenter import TASKS, Segmenter
from sum.models.stopwatch import Clock, Stopwatch
from sum.suite import Suite

Row = dict[str, object]
Records = dict[str, list[Row]]  # file name -> rows
Pair = tuple[ImageRecord, Sequence[MaskRecord]]


class Bench:
    """A model on the bench."""

    def __init__(
        self,
        name: str,
        model: Segmenter,
        suite: Suite,
        *,
        keep: Iterable[int],
        refiner: Refiner | None = None,
        clock: Clock = perf_counter,
    ) -> None:
        """keep: rounds whose oracle predictions of the main game are stored; refiner: for the uncertainty of its first
        answers; clock: for the model's times, seconds.
        """
        self.name, self.model, self.suite, self.refiner, self.clock = name, model, suite, refiner, clock
        self.rounds_kept = frozenset(keep)
        self.turn = threading.Lock()  # whoever has it asks the model
        settings = suite.everything
        self.batches = None if settings is None else Batches.of(settings)  # what fitted one image fits the next

    def images(self, pairs: Sequence[Pair], *, workers: int) -> Iterator[Records]:
        """The rows of each image, in order; `workers` of them at once: one clicks and scores while another asks."""
        pool = ThreadPoolExecutor(workers)
        try:
            yield from pool.map(lambda pair: self.image(*pair), pairs)
        finally:
            pool.shutdown(cancel_futures=True)

    def image(self, image: ImageRecord, masks: Sequence[MaskRecord]) -> Records:
        """All rows of one image, in the order of its masks."""
        watch = Stopwatch(self.turn, clock=self.clock, finish=self._finish)
        opened = open_image(self.model, image, masks, watch=watch)
        sheet = _Sheet(self.name, image, masks)
        for number, (protocol, task_prompt) in enumerate(self.suite.games(image.task)):
            if task_prompt == UNSPECIFIED and self._asks_alike(image.task):
                sheet.repeat(prompt=protocol.first_prompt, task_prompt=task_prompt)
                continue
            answers = play(
                self.model,
                opened.embedding,
                opened.truths,
                task=TASKS[task_prompt],
                protocol=protocol,
                ids=[mask.mask_id for mask in masks],
                watch=watch,
            )
            firsts = []
            for answer in answers:
                sheet.answer(answer, prompt=protocol.first_prompt, task_prompt=task_prompt)
                if not number and answer.output == "oracle":
                    sheet.keep(answer, rounds=self.rounds_kept)
                    firsts += [answer] if answer.round == 1 and self.refiner else []
            if not number:
                self._maps(sheet, opened, firsts, watch)
        self._everything(sheet, opened, watch)
        if self.suite.fidelity:
            batch = self.suite.protocol.batch_masks
            asked = examine(
                self.model, opened.embedding, opened.truths, task=TASKS[image.task], batch=batch, watch=watch
            )
            sheet.found[FIDELITY] += [
                {**sheet.about(row.mask), "check": row.check, "passed": row.passed} for row in asked
            ]
        sheet.found[TIMES] += [lap._asdict() for lap in watch.laps]
        return sheet.sorted()

    def _finish(self) -> None:
        """Wait for a GPU, which may still be at work for this thread."""
        if self.model.task_prompt.is_cuda:
            torch.cuda.synchronize(self.model.task_prompt.device)

    def _asks_alike(self, task: str) -> bool:
        """Whether this task's prompt says nothing, as all of a base's: then both games are the same."""
        return not bool(self.model.task_prompt[TASKS[task]].any())

    def _maps(self, sheet: _Sheet, opened: Opened, firsts: Sequence[Answer], watch: Stopwatch) -> None:
        if self.refiner is None:
            return
        with watch.running():
            step = self.suite.protocol.batch_masks
            codes = doubts(self.refiner, opened.embedding, firsts, opened.truths, step=step)
        watch.lap("maps", len(sheet.masks))
        sheet.found[MAPS] += [
            {"mask_id": mask.mask_id, "png": cv2.imencode(".png", code)[1].tobytes()}
            for mask, code in zip(sheet.masks, codes, strict=True)
        ]

    def _everything(self, sheet: _Sheet, opened: Opened, watch: Stopwatch) -> None:
        settings, batches = self.suite.everything, self.batches
        if settings is None:
            return
        with watch.running():
            masks = generate(
                self.model,
                opened.photo,
                settings=settings,
                embedding=opened.embedding,
                batches=batches,
            )
        watch.lap("everything", 1)
        ratio = self.suite.protocol.boundary_ratio
        rle = [mask.rle for mask in sheet.masks]
        hw = (opened.photo.shape[0], opened.photo.shape[1])
        for number, match in enumerate(nearest(masks, rle, hw=hw, ratio=ratio)):
            sheet.score(
                number,
                prompt=EVERYTHING,
                task_prompt=UNSPECIFIED,
                round_=1,
                output="oracle",
                figures=(match.iou, match.boundary_iou, match.predicted_iou),
            )
        place = {name: sheet.about(0)[name] for name in ("model", "dataset", "task", "image_id")}
        sheet.found[GENERATED].append({**place, "generated": len(masks)})


class _Sheet:
    """The rows of one image while they are written."""

    def __init__(self, model: str, image: ImageRecord, masks: Sequence[MaskRecord]) -> None:
        self.model, self.image, self.masks = model, image, masks
        self.found: Records = {name: [] for name in (ROWS, PREDICTIONS, MAPS, FIDELITY, GENERATED, TIMES)}

    def about(self, number: int) -> Row:
        """Which mask of which model a row is of."""
        mask = self.masks[number]
        place = {"dataset": mask.dataset, "task": mask.task, "image_id": mask.image_id, "mask_id": mask.mask_id}
        return {"model": self.model, **place}

    def answer(self, answer: Answer, *, prompt: str, task_prompt: str) -> None:
        """A row of a game."""
        figures = (answer.iou, answer.boundary_iou, answer.predicted_iou)
        self.score(
            answer.mask,
            prompt=prompt,
            task_prompt=task_prompt,
            round_=answer.round,
            output=answer.output,
            figures=figures,
            click=answer.click,
        )

    def score(
        self,
        number: int,
        *,
        prompt: str,
        task_prompt: str,
        round_: int,
        output: str,
        figures: tuple[float, float, float],
        click: tuple[int, int, int] | None = None,
    ) -> None:
        """A row; figures: IoU, boundary IoU, predicted IoU."""
        game = {"prompt": prompt, "task_prompt": task_prompt, "area": self.masks[number].area}
        clicked = dict(zip(("click_x", "click_y", "click_label"), click or (None,) * 3, strict=True))
        values = dict(zip(("iou", "boundary_iou", "predicted_iou"), figures, strict=True))
        self.found[ROWS].append({**self.about(number), **game, "round": round_, "output": output, **values, **clicked})

    def repeat(self, *, prompt: str, task_prompt: str) -> None:
        """The rows of the game with this first prompt once more, as of another task prompt that asks the same."""
        played = [row for row in self.found[ROWS] if row["prompt"] == prompt]
        self.found[ROWS] += [{**row, "task_prompt": task_prompt} for row in played]

    def keep(self, answer: Answer, *, rounds: Iterable[int]) -> None:
        """Store the mask of an answer if it is of one of the rounds."""
        if answer.round in rounds:
            place = {"mask_id": self.masks[answer.mask].mask_id, "round": answer.round, "output": answer.output}
            self.found[PREDICTIONS].append({**place, "rle": encode_mask(answer.prediction)})

    def sorted(self) -> Records:
        """All rows; of games mask by mask, a mask's games in the order they were played."""
        order = {mask.mask_id: number for number, mask in enumerate(self.masks)}
        played = {game: number for number, game in enumerate(dict.fromkeys(map(_game, self.found[ROWS])))}
        self.found[ROWS].sort(
            key=lambda row: (order[str(row["mask_id"])], played[_game(row)], row["round"], row["output"])
        )
        self.found[PREDICTIONS].sort(key=lambda row: (order[str(row["mask_id"])], row["round"]))
        return self.found


def _game(row: Row) -> tuple[object, object]:
    return row["prompt"], row["task_prompt"]
