"""What MLflow serves: a row's check, the model loaded by MLflow, and the server on loopback against Predictor."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco

from sum.data.demo_files import write_demo
from sum.errors import DataError
from sum.mlflow_client import as_default, connect
from sum.mlflow_model import INPUTS, OUTPUTS
from sum.models.checkpoint import fingerprint, load_segmenter, save_segmenter
from sum.predict import Predictor
from sum.registry import Registry
from sum.serving import MAX_PIXELS, Served, read_request
from sum.tracking import start_run

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs/predict.md"
TINY = PROJECT / "sum/models/weights/tiny.safetensors"
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray = PIXELS, kind: str = "PNG") -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return base64.b64encode(data.getvalue()).decode()


GOOD: dict[str, Any] = {"image": encoded(), "points": [[30, 20.5]], "labels": [1]}
BOX = [3, 4.5, 64, 48]
ROWS: list[dict[str, Any]] = [
    GOOD,
    {"image": encoded(), "box": BOX, "task": "part", "multimask": False},
    {
        "image": encoded(PIXELS[:30]),
        "points": [[1, 2], [9, 8]],
        "labels": [1, 0],
        "box": [0, 0, 9, 9],
        "task": "entity",
    },
]
HUGE = b"\x89PNG\r\n\x1a\n" + b"".join(  # a header alone
    len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    for kind, body in ((b"IHDR", struct.pack(">2I5B", 20000, 10000, 8, 2, 0, 0, 0)), (b"IDAT", b""))
)
BAD: list[tuple[dict[str, Any], str]] = [
    ({**GOOD, "image": base64.b64encode(HUGE).decode()}, "image: 20000 x 10000 pixels, more than the 89,478,485 that"),
    ({"points": [[1, 2]], "labels": [1]}, "image: missing; wants the base64 text"),
    ({**GOOD, "image": None}, "image: missing"),
    ({**GOOD, "image": 7}, "image: a int; wants the base64 text"),
    ({**GOOD, "image": "no base64!"}, "image: not base64"),
    (
        {**GOOD, "image": base64.b64encode(b"%PDF-1.4").decode()},
        "image: not a readable image (no image by its content)",
    ),
    ({**GOOD, "image": encoded()[:400]}, "image: not a readable image"),
    ({"image": encoded()}, "a prompt is missing: give points and labels, or a box"),
    ({**GOOD, "points": []}, "points: wants [[x, y], ...] in pixels, got []"),
    ({**GOOD, "points": "30,20"}, "points: wants [[x, y], ...] in pixels, got '30,20'"),
    ({**GOOD, "points": [30, 20]}, "points: wants [[x, y], ...]"),
    ({**GOOD, "points": [["30", "20"]]}, "points: wants [[x, y], ...]"),
    ({**GOOD, "points": [[True, 1]]}, "points: wants [[x, y], ...]"),
    ({**GOOD, "points": [[float("inf"), 1]]}, "points: wants [[x, y], ...]"),
    ({**GOOD, "points": [[64, 20]]}, "points: (64, 20) is outside the image of 64 x 48 pixels"),
    ({**GOOD, "points": [[3, -1]]}, "points: (3, -1) is outside the image of 64 x 48 pixels"),
    ({"image": encoded(), "points": [[1, 2]]}, "labels: missing; wants one a point, 1: 1 on the object, 0 off it"),
    ({**GOOD, "labels": [1, 0]}, "labels: wants 1 of 1 (on the object) or 0 (off it), one a point, got [1, 0]"),
    ({**GOOD, "labels": [2]}, "labels: wants 1 of"),
    ({**GOOD, "labels": ["1"]}, "labels: wants 1 of"),
    ({**GOOD, "labels": 1}, "labels: wants 1 of"),
    ({"image": encoded(), "labels": [1], "box": BOX}, "labels: there are no points that they belong to"),
    ({**GOOD, "box": [1, 2, 3]}, "box: wants [x0, y0, x1, y1] in pixels, got [1, 2, 3]"),
    ({**GOOD, "box": [9, 2, 3, 4]}, "box: [9, 2, 3, 4]; wants x0 < x1 and y0 < y1 inside the image of 64 x 48"),
    ({**GOOD, "box": [0, 0, 65, 4]}, "inside the image of 64 x 48 pixels"),
    ({**GOOD, "task": "parts"}, "task: unknown 'parts'. Known: unspecified, salient, entity, part"),
    ({**GOOD, "task": 3}, "task: unknown 3"),
    ({**GOOD, "multimask": "yes"}, "multimask: wants true or false, got 'yes'"),
    ({**GOOD, "multimask": 1}, "multimask: wants true or false, got 1"),
    ({**GOOD, "multimsk": False}, "unknown column 'multimsk'. Did you mean 'multimask'? Known: image, points, labels"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_bad_row_is_told_why(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        read_request(row)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_good_row_is_read_as_it_was_meant() -> None:
    request = read_request({**GOOD, "box": float("nan"), "task": None})
    assert np.array_equal(request.image, PIXELS)
    assert request.prompt.keys() == {"task", "multimask_output", "point_coords", "point_labels"}
    assert (request.prompt["task"], request.prompt["multimask_output"]) == ("unspecified", True)
    assert request.prompt["point_coords"].tolist() == [[30.0, 20.5]]
    arrays = {
        "image": encoded(kind="JPEG"),
        "points": np.array([[3, 4]]),
        "labels": np.array([0]),
        "box": np.array(BOX),
    }
    assert read_request(arrays).prompt["box"].tolist() == BOX


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(DataError, match="image: 64 x 48 pixels, more than the 3,000 that are taken; send it smaller"):
        read_request(GOOD, max_pixels=3000)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_segmenter(TINY, backbone="tiny")
    model.task_prompt.data.normal_()
    path = tmp_path_factory.mktemp("served") / "model.safetensors"
    save_segmenter(path, model, about={})
    return path


def registered(uri: str, weights: Path) -> None:
    """The weights as models:/sum-ft-large@champion."""
    with start_run(uri=uri, experiment="sum", name="large", params={}, tags={}) as run:
        model = run.log_model(weights, name="ft-large", fingerprint=fingerprint(weights), params={})
    version = Registry(uri).register(model, run_id=run.id, name="sum-ft-large", tags={})
    Registry(uri).point("sum-ft-large", alias="champion", number=version.number)


def assert_is_the_predictors(answers: list[dict[str, Any]], weights: Path) -> None:
    """Masks pixel by pixel and scores bit by bit, of ROWS."""
    predictor = Predictor(weights, device="cpu")
    assert len(answers) == len(ROWS)
    for row, answer in zip(ROWS, answers, strict=True):
        request = read_request(row)
        predictor.set_image(request.image)
        masks, scores, _ = predictor.predict(**request.prompt)
        assert answer.keys() == {"masks", "scores", "task", "fingerprint"}
        assert answer["scores"] == [float(score) for score in scores]
        assert (answer["fingerprint"], answer["task"]) == (fingerprint(weights), row.get("task", "unspecified"))
        assert len(answer["masks"]) == len(masks) == (1 if row.get("multimask") is False else 3)
        for code, mask in zip(answer["masks"], masks, strict=True):
            assert np.array_equal(coco.decode(code).astype(bool), mask)


@pytest.mark.slow
def test_mlflow_loads_a_logged_model_and_predicts(tracking_uri: str, weights: Path, tmp_path: Path) -> None:
    import mlflow

    registered(tracking_uri, weights)
    stored = {path.name for path in (tmp_path / "mlruns").rglob("*") if path.is_file()}
    assert stored == {"MLmodel", "environment.txt", "model.safetensors"}  # nothing pickled
    with as_default(connect(tracking_uri)):
        model = mlflow.pyfunc.load_model("models:/sum-ft-large@champion")
        assert model.metadata.get_input_schema() is None  # it would drop a column that is not in it without a word
        assert model.metadata.get_output_schema().input_names() == ["masks", "scores", "task", "fingerprint"]
        assert_is_the_predictors(model.predict(pd.DataFrame(ROWS)), weights)
        for rows, said in (
            (pd.DataFrame([{**GOOD, "task": "parts"}]), "row 1: task: unknown 'parts'"),
            (pd.DataFrame([GOOD, {**GOOD, "multimsk": False}]), "row 2: unknown column 'multimsk'"),
            (pd.DataFrame(["x"]), "row 1: no object: each of dataframe_records wants the form"),
            (pd.DataFrame([], columns=list(INPUTS)), "no rows: send"),
        ):
            with pytest.raises(mlflow.MlflowException) as error:
                model.predict(rows)
            assert error.value.get_http_status_code() == 400
            assert said in json.loads(error.value.serialize_as_json())["message"]


def test_a_fault_of_the_model_is_not_blamed_on_the_request(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(weights, device="cpu")

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor, "set_image", out_of_memory)
    with pytest.raises(Exception, match="the model failed: RuntimeError out of memory") as error:
        Served(predictor).predict(pd.DataFrame([GOOD]))
    assert error.value.get_http_status_code() == 500  # type: ignore[attr-defined]


def post(url: str, body: object) -> tuple[int, Any]:
    """Status and JSON of the answer; body: an object for JSON, or text as it is."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture
def server(tracking_uri: str, weights: Path, tmp_path: Path, free_port: int) -> Iterator[str]:
    """`mlflow models serve` of the champion; the address where it is asked."""
    registered(tracking_uri, weights)
    words = [
        "models",
        "serve",
        "-m",
        "models:/sum-ft-large@champion",
        "--env-manager",
        "local",
        "--port",
        str(free_port),
    ]
    env = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "PYTHONPATH": str(PROJECT)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # MLflow starts `uvicorn` by name
    log = tmp_path / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], cwd=tmp_path, env=env, stdout=out, stderr=out, process_group=0
        )
    try:
        deadline = time.monotonic() + 300
        while "Application startup complete" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{free_port}/invocations"
    finally:
        os.killpg(process.pid, 15)  # of a group of its own: MLflow's shell and uvicorn below it
        process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlflow_serves_the_champion(server: str, weights: Path, tmp_path: Path) -> None:
    status, answer = post(server, {"dataframe_records": ROWS})
    assert status == 200
    assert_is_the_predictors(answer["predictions"], weights)
    columns = list(GOOD)
    split = {"columns": columns, "data": [[GOOD[name] for name in columns]]}
    assert post(server, {"dataframe_split": split})[1]["predictions"] == answer["predictions"][:1]
    for row, said in BAD:
        if "inf" in repr(row):
            continue  # no JSON
        status, told = post(server, {"dataframe_records": [GOOD, row]})
        assert status == 400, told
        assert told["message"].startswith("row 2: ")
        assert said in told["message"]
    for body in ("no json", {"rows": [GOOD]}, {"dataframe_records": "x"}, {"dataframe_records": []}, []):
        status, told = post(server, body)
        assert status == 400, (body, told)
        assert told["message"]
    if shutil.which("curl"):
        write_demo(tmp_path / "data/raw/demo", seeds={"test": 13}, scenes={"salient_test": 1}, side=128)
        assert_the_documented_talk_is_true(server, tmp_path)


def assert_the_documented_talk_is_true(server: str, folder: Path) -> None:
    """The commands of docs/predict.md, run; another CPU may round the scores and a pixel at an edge."""
    talk = DOCS.read_text().partition("\n$ ")[2].partition("\n```")[0]
    commands = [part.partition("\n")[0] for part in talk.split("\n$ ")]
    wanted = [line for line in talk.splitlines() if line.startswith("{") or line.isdigit()]
    script = "\n".join(commands).replace("http://127.0.0.1:5002/invocations", server)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    found = [line for line in done.stdout.splitlines() if line]
    assert len(found) == len(wanted) == 6
    (first,), (answer,) = (json.loads(lines[0])["predictions"] for lines in (wanted, found))
    assert answer["scores"] == pytest.approx(first["scores"], abs=1e-3)
    one, other = (coco.decode(entry["masks"][0]).astype(bool) for entry in (first, answer))
    assert (one ^ other).mean() < 0.01
    assert first["fingerprint"] == fingerprint(TINY)  # unspecified, so a tuned prompt changes nothing
    assert found[1:] == wanted[1:]


def test_the_docs_name_every_column_and_answer() -> None:
    text = DOCS.read_text()
    table = text[text.index("| column of a row |") :].partition("\n\n")[0]
    assert [name for row in table.splitlines()[2:] for name in re.findall("`([a-z]+)`", row.split("|")[1])] == [*INPUTS]
    assert f"{MAX_PIXELS:,} px" in table
    told = text.partition("An answer has ")[2].partition(" A request")[0]
    assert [name for name in re.findall("`([a-z]+)`", told) if name in OUTPUTS] == [*OUTPUTS]
