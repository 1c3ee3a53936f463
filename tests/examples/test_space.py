"""The Space: the functions of its tabs, and the page in a real browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from conftest import REPOSITORY, run_process
from endpoint_server import restored_pil
from hostile_files import chunk, encode, png, repeat, shared_tags
from hub_repositories import PIPELINES, make_image, make_model
from huggingface_hub import constants
from local_hub import LocalHub
from PIL import Image
from transformers import pipeline

from clustr_hf import ClusTRForImageClassification
from clustr_hf.publish import build_repository


sys.path.insert(0, str(REPOSITORY / "examples" / "space"))

import app
import draw_examples
import publish_space
import space_answers
import space_cluster_views
import space_clusters
import space_inputs
import space_models
import space_tasks


TITLES = {
    "classification": "Classification",
    "semantic_fpn": "Semantic segmentation",
    "detection": "Object detection",
    "instances": "Instance segmentation",
    "poses": "Poses",
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Switches off Chromium's own requests to Google's servers.
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def run_of(kind):
    model, processor = make_model(kind)
    return pipeline(PIPELINES[kind], model=model, image_processor=processor)


def test_every_tab_shows_what_its_model_says():
    for kind, title in TITLES.items():
        predict, image = space_tasks.make_predict(title, run_of(kind)), make_image()
        if kind == "classification":
            scores = predict(image)
            assert set(scores) == {"cat", "dog", "owl"} and sum(scores.values()) == pytest.approx(1, abs=1e-5)
            continue
        settings = {"semantic_fpn": [], "poses": [0.0, "10, 10, 50, 60\n60,5,40,80"]}.get(kind, [0.2])
        picture, table = predict(image, *settings)
        assert picture.size == image.size
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(image)).mean() > 0.1
        rows = rows_of(table)
        labels = [row[1] for row in rows]
        assert len(set(labels)) == len(labels) > 0
        assert set(labels) <= {"person"} if kind == "poses" else set(labels) <= {"cat", "dog", "owl"}
        assert ("background: rgb(" in rows[0][0]) == (kind in ("semantic_fpn", "detection"))
        if kind == "semantic_fpn":
            shares = [float(re.fullmatch(r"([\d.]+) %", row[2])[1]) for row in rows]
            assert sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares, reverse=True)
            continue
        parameters = {"threshold": settings[0]}
        parameters |= {"boxes": space_inputs.parse_boxes(settings[1])} if kind == "poses" else {}
        answers = run_of(kind)(image, **parameters)
        for _, label, number, scores in rows:
            expected = [answer["score"] for answer in answers if answer.get("label", "person") == label]
            assert int(number) == len(expected)
            ends = [f"{min(expected):.2f}", f"{max(expected):.2f}"]
            assert scores == " to ".join(dict.fromkeys(ends))
        assert sum(int(row[2]) for row in rows) == len(answers)


def rows_of(table: str) -> list[list[str]]:
    """The cells of each row below the header."""
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.*?)</tr>", table)]


def test_objects_are_grouped_by_class():
    """One row per class instead of one per object."""
    box = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}
    answers = [{"label": "nucleus", "score": 0.3 + 0.01 * index, "box": box} for index in range(70)]
    answers += [{"label": "cell", "score": 0.998, "box": box}]
    rows = rows_of(space_answers.describe(answers, ["nucleus", "cell"]))
    assert [row[1:] for row in rows] == [["cell", "1", "1.00"], ["nucleus", "70", "0.30 to 0.99"]]
    assert rows[0][0] != rows[1][0]


def test_examples_are_what_the_script_draws(tmp_path):
    """Also checks that every image in the folder is an example of some tab."""
    names = {path.stem for path in space_inputs.IMAGES.iterdir()}
    assert names == {name for names in space_inputs.EXAMPLES.values() for name in names}
    assert space_inputs.EXAMPLES.keys() == {"Clusters", *space_models.TASKS}
    assert {name for name in names if name.startswith("synthetic_")} == draw_examples.DRAWINGS.keys()
    run_process([sys.executable, draw_examples.__file__, "--folder", tmp_path], tmp_path)
    for name in draw_examples.DRAWINGS:
        drawn, committed = (
            np.asarray(Image.open(folder / f"{name}.jpg"), dtype=int) for folder in (tmp_path, space_inputs.IMAGES)
        )
        assert np.abs(drawn - committed).mean() < 3


@pytest.mark.parametrize(
    "title, checkpoint, expected",
    [
        ("Classification", "src/clustr_hf/checkpoints/clustr-nano-cifar10", {}),
        ("Object detection", "checkpoints/clustr-nano-bccd", {"WBC": 2, "RBC": 15, "Platelets": 3}),
        ("Instance segmentation", "checkpoints/clustr-nano-nuclei", {"nucleus": 30}),
        ("Semantic segmentation", "checkpoints/clustr-nano-camvid", {"Road": 15, "Sky": 10, "Building": 5, "Car": 1}),
    ],
)
def test_the_checkpoints_find_in_the_first_examples_what_is_drawn(title, checkpoint, expected):
    """`expected` has the minimum number of objects, or the minimum share of the image in percent."""
    run = space_models.load_pipeline(str(REPOSITORY / checkpoint))
    values = space_tasks.first_answer(title, space_tasks.make_predict(title, run))
    if title == "Classification":
        assert max(values[0], key=values[0].get) == "cat"
        for name in ("automobile", "ship"):
            scores = space_tasks.make_predict(title, run)(str(space_inputs.IMAGES / f"synthetic_{name}.jpg"))
            assert max(scores, key=scores.get) == name
        return
    found = {row[1]: float(row[2].split()[0]) for row in rows_of(values[1])}
    assert all(found.get(label, 0) >= number for label, number in expected.items())


def test_a_first_example_that_fails_leaves_the_page_open():
    def fail(*_):
        raise RuntimeError("<no memory>")

    picture, text = space_tasks.first_answer("Object detection", fail)
    assert picture is None and text.endswith("RuntimeError: &lt;no memory&gt;")


def test_files_with_malformed_metadata_are_shown(tmp_path):
    """The page passes files to the models without gradio's decoding."""
    path = tmp_path / "image.png"
    make_image().save(path, exif=b"Exif\0\0\x00\x08\x00\x02\x01\x12\x00\x03")
    image = space_inputs.checked(str(path), run_of("classification").image_processor)
    assert np.array_equal(image, make_image())
    component = space_inputs.add_image("Poses")
    assert component.preprocess(gr.data_classes.ImageData(path=str(path))) == str(path)


def test_labels_are_text_on_the_page_whatever_they_are():
    table = space_answers.describe([{"label": "<img src=x>", "score": 0.5, "box": {}}], ["<img src=x>"])
    assert "&lt;img src=x&gt;" in table and "<img" not in table
    assert space_answers.describe([], ["a"]) == "Nothing was found."


def test_nothing_that_people_do_is_a_crash():
    predict = space_tasks.make_predict("Poses", run_of("poses"))
    for image, boxes, message in [
        (None, "", "Choose an image first"),
        (Image.new("RGB", (2000, 3)), "", "times as long as wide"),
        (make_image(), "1, 2, 3", "must be lines of four numbers"),
        (make_image(), "1, 2, 0, 4", "at least 1 wide and high"),
        (make_image(), "a, b, c, d", "must be lines of four numbers"),
        (make_image(), "nan, 0, 5, 5", "must be at most 100 boxes"),
    ]:
        with pytest.raises(gr.Error, match=message):
            predict(image, 0.3, boxes)
    assert space_cluster_views.show_clusters(None, 1, 1, 1)[0] is None
    view = space_cluster_views.ClusterView(run_of("classification"))
    with pytest.raises(gr.Error, match="Choose an image first"):
        view.find(None, 64, "as trained")
    found = view.find(Image.new("RGB", (900, 100), "red"), 448, "64 times")
    assert max(found.image.size) == 896 and len(found.maps) == 4


def test_costly_files_are_refused_before_they_are_decoded(tmp_path):
    """Both the functions of the Space and gradio, which opens files itself, refuse them."""
    run, path = run_of("classification"), tmp_path / "image.png"
    component = space_inputs.add_image("Poses")
    with restored_pil():
        space_inputs.refuse_costly_files()
        for content, message in [
            (encode("PNG", (4_001, 4_000), "1"), "decompression bomb"),
            (png(repeat(chunk(b"aaAa"), 500_000)), "more than 4,9.. parts"),
            (shared_tags(1500, 1_000_000), "cannot identify image file"),
            (encode("TIFF"), "cannot identify image file"),
        ]:
            path.write_bytes(content)
            with pytest.raises((Image.DecompressionBombError, Image.UnidentifiedImageError, ValueError), match=message):
                component.preprocess(gr.data_classes.ImageData(path=str(path)))
            with pytest.raises(gr.Error):
                space_inputs.ask(run, str(path))
        path.write_bytes(encode("PNG"))
        assert component.preprocess(gr.data_classes.ImageData(path=str(path))) == str(path)
        assert len(space_inputs.ask(run, str(path))[1]) == 3


def test_masks_of_a_page_are_limited(monkeypatch, tmp_path):
    from clustr_hf.remote_code import handler_clustr

    run = space_models.load_pipeline(str(build_repository(*make_model("instances"), tmp_path / "instances")))
    predict = space_tasks.make_predict("Instance segmentation", run)
    predict(make_image(), 0.5)
    monkeypatch.setattr(handler_clustr, "MAX_PIXELS_OF_ANSWER", 120 * 90)
    with pytest.raises(gr.Error, match="masks of an answer must have at most 10,800 pixels"):
        predict(make_image(), 0.0)


@pytest.mark.parametrize("data", [None, {}, {"index": None, "value": 1}, {"index": [1], "value": 1}, {"index": "ab"}])
def test_calls_of_programs_without_a_click_are_answered(data):
    """Calls `/click` as gradio does, before and after clusters were found."""
    view = space_cluster_views.ClusterView(run_of("classification"))
    found = view.find(make_image((96, 64)), 64, "as trained")
    shown = space_cluster_views.show_clusters(found, 1, 1, 1)
    for state, picture, expected in (
        (None, None, "Choose an image."),
        (found, shown[0], shown[1]),
        (found, None, shown[1]),
    ):
        inputs = [state, 1, 1, 1, picture]
        inputs, *_ = gr.helpers.special_args(space_cluster_views.click, inputs, event_data=gr.EventData(None, data))
        assert space_cluster_views.click(*inputs)[1] == expected


@pytest.mark.parametrize("index", [[-5, -7], [10**5, 10**5], ["3", "4"]])
def test_clicks_beside_the_picture_are_on_its_edge(index):
    view = space_cluster_views.ClusterView(run_of("classification"))
    found = view.find(make_image((96, 64)), 64, "as trained")
    picture, _ = space_cluster_views.show_clusters(found, 1, 1, 1)
    event = gr.EventData(None, {"index": index, "value": None})
    assert "bright patches are one cluster" in space_cluster_views.click(found, 1, 1, 1, picture, event)[1]


def test_what_programs_leave_out_is_named():
    views = {"Classification": space_cluster_views.ClusterView(run_of("classification"))}
    assert space_clusters.chosen_view(views, "Classification", 1) is views["Classification"]
    for chosen in ((None,), ("Classification", None), (None, 224, "16 times")):
        with pytest.raises(gr.Error, match="Choose a model and all settings first"):
            space_clusters.chosen_view(views, *chosen)
    assert space_inputs.parse_boxes(None) is None


def test_cluster_pictures_are_of_the_place_that_is_picked():
    view = space_cluster_views.ClusterView(run_of("classification"))
    found = view.find(make_image((96, 64)), 64, "as trained")
    assert found.image.size == (96, 64)
    pictures, captions = zip(
        *(space_cluster_views.show_clusters(found, *place) for place in [(1, 1, 1), (1, 1, 2), (2, 1, 1)])
    )
    assert captions[0].startswith("Stage 1, block 1, scale 1: 32 x 48 patches in 96 clusters. The image takes 960 ")
    assert captions[2].startswith("Stage 2, block 1, scale 1: 16 x 24 patches in 96 clusters. The image takes 960 ")
    arrays = [np.asarray(picture.resize((96, 64))).astype(int) for picture in pictures]
    assert all(np.abs(a - b).mean() > 3 for i, a in enumerate(arrays) for b in arrays[:i])
    assert space_cluster_views.show_clusters(found, 3, 1, 1) == (None, "This stage has no such block or scale.")
    coarse = view.find(make_image((96, 64)), 64, "16 times")
    assert "in 6 clusters" in space_cluster_views.show_clusters(coarse, 1, 1, 1)[1]

    chosen = space_cluster_views.pick(found, 1, 1, 1)
    event = gr.SelectData(None, {"index": [pictures[0].width - 1, pictures[0].height - 1], "value": None})
    picture, caption = space_cluster_views.click(found, 1, 1, 1, pictures[0], event)
    members = int((chosen.cluster_index == chosen.cluster_index[-1]).sum())
    assert f"The {members} bright patches are one cluster" in caption
    shown = np.asarray(picture.resize((48, 32), Image.Resampling.BOX)).mean(axis=-1).ravel()
    original = np.asarray(found.image.resize((48, 32), Image.Resampling.BOX)).mean(axis=-1).ravel()
    is_member = (chosen.cluster_index == chosen.cluster_index[-1]).numpy()
    bright = original > 30
    brightness = shown[bright] / original[bright]
    assert np.abs(brightness - 1)[is_member[bright]].max(initial=0) < 0.35
    assert brightness[~is_member[bright]].max() < 0.35


def test_a_plain_image_takes_fewer_clusters_than_a_crowded_one():
    view = space_cluster_views.ClusterView(run_of("classification"))
    plain, crowded = Image.new("RGB", (64, 64), "gray"), Image.effect_noise((64, 64), 120).convert("RGB")
    fixed = [view.find(image, 64, "as trained") for image in (plain, crowded)]
    assert {each.num_clusters for each in fixed} == {fixed[0].most_clusters}
    few, many = (view.find(image, 64, "as trained", "0.2 %") for image in (plain, crowded))
    assert few.num_clusters < many.num_clusters < many.most_clusters == fixed[0].most_clusters
    _, caption = space_cluster_views.show_clusters(few, 1, 1, 1)
    assert f"takes {few.num_clusters} clusters in all blocks and scales in place of {few.most_clusters}." in caption
    assert view.model.config.cluster_count == "ratio"


def test_without_the_hub_the_packages_checkpoint_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    models = space_models.load_models(["me/clustr-cats@4f2a0c9"])
    assert list(models.pipelines) == ["Classification"]
    assert models.names["Classification"].startswith("clustr-nano-cifar10, bundled with the package")
    [note] = models.notes
    assert "me/clustr-cats" in note and "could not be loaded: " in note
    features = build_repository(*make_model("features"), tmp_path / "features")
    cats = build_repository(*make_model("classification"), tmp_path / "cats")
    models = space_models.load_models([str(features), str(cats), str(cats)])
    assert "must be a model with a head for one of the tasks, got a ClusTRModel" in models.notes[0]
    assert "is shown for classification, instead of cats" in models.notes[1]
    assert type(models.pipelines["Classification"].model) is ClusTRForImageClassification  # not the repository's code
    listed = tmp_path / "models.json"
    listed.write_text(json.dumps([{"model": str(cats)}]))
    models = space_models.load_models(path=listed)
    assert models.names == {"Classification": "cats"} and models.notes == []
    assert list(space_models.load_models(path=tmp_path / "missing.json").pipelines) == ["Classification"]
    assert isinstance(app.build_space(space_models.SpaceModels()), gr.Blocks)


def test_persons_are_found_by_the_detector_if_it_knows_them(tmp_path):
    detector, processor = make_model("detection")
    folders = [build_repository(*make_model("poses"), tmp_path / "poses"), tmp_path / "persons", tmp_path / "cats"]
    build_repository(detector, processor, folders[2])
    detector.config.id2label = {0: "cat", 1: "person", 2: "owl"}
    build_repository(detector, processor, folders[1])
    with_persons = space_models.load_models(folders[:2]).pipelines
    assert with_persons["Poses"].detector is with_persons["Object detection"]
    assert space_models.load_models(folders[::2]).pipelines["Poses"].detector is None


def test_the_space_is_pushed_in_one_commit(tmp_path):
    script = [sys.executable, REPOSITORY / "examples" / "publish_space.py"]
    with LocalHub() as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        command = [*script, "--models", "me/cats@abc", "me/dogs", "--repo_id", "clustr"]
        output = run_process(command, tmp_path, **environment)
        [_, (revision, files)] = hub.repositories["spaces/me/clustr"]
    assert f"revision {revision}" in output
    assert json.loads(files["models.json"]) == [{"model": "me/cats", "revision": "abc"}, {"model": "me/dogs"}]
    code = {"app.py", "space_models.py", "clustr_hf/remote_code/modeling_clustr.py"}
    assert {*code, "images/cat.jpg", "README.md"} <= files.keys()
    assert b"sdk: gradio" in files["README.md"] and b"matplotlib" in files["requirements.txt"]
    assert {Path(name).suffix for name in files} == {".py", ".md", ".json", ".txt", ".jpg", ".png", ".safetensors"}
    assert "clustr_hf/checkpoints/clustr-nano-cifar10/model.safetensors" in files
    assert re.search(rb"sdk_version: \d+\.\d+", files["README.md"])


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Address of an assembled Space with a model in every tab; it runs with its own copy of the package."""
    folder = tmp_path_factory.mktemp("space")
    place = publish_space.assemble_space(folder / "space", [])
    repositories = [build_repository(*make_model(kind), folder / kind) for kind in TITLES if kind != "classification"]
    (place / "models.json").write_text(json.dumps([{"model": str(path)} for path in repositories]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    with open(folder / "log", "w") as log:
        command = [sys.executable, "app.py", "--port", str(port)]
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen, log: Path):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the Space did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the Space is not driven in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, space):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(60_000)
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(space)
    yield page
    page.close()


def upload(page, tab: str, path: Path):
    page.set_input_files(f"#image-{tab} input[type=file]", path)
    page.wait_for_selector(f"#image-{tab} img")


def wait_for_text(page, selector: str, part: str) -> str:
    page.wait_for_function(
        "([selector, part]) => document.querySelector(selector)?.innerText.includes(part)", arg=[selector, part]
    )
    return page.inner_text(selector)


def wait_for_new_picture(page, selector: str, old: str | None) -> str:
    page.wait_for_function(
        "([selector, old]) => { const img = document.querySelector(selector + ' img');"
        " return img && img.complete && img.naturalWidth > 0 && img.src !== old }",
        arg=[selector, old],
    )
    return page.get_attribute(f"{selector} img", "src")


def pixels_of(page, address: str) -> np.ndarray:
    with urllib.request.urlopen(address) as response:
        return np.asarray(Image.open(response).convert("RGB").resize((64, 64))).astype(int)


def test_the_page_opens_with_the_first_examples_and_their_answers(page):
    """Checks every tab without a click on its controls."""
    wait_for_text(page, "#caption", "Stage 1, block 1, scale 1: 112 x 112 patches in 49 clusters.")
    first = wait_for_new_picture(page, "#clusters", None)
    assert pixels_of(page, first).std() > 10
    for kind, title in TITLES.items():
        tab = slug_of(title)
        page.get_by_role("tab", name=title, exact=True).click()
        page.wait_for_selector(f"#image-{tab} img")
        if kind == "classification":
            assert re.search(r"^cat$", wait_for_text(page, f"#answer-{tab}", "%"), flags=re.MULTILINE)
        else:
            wait_for_new_picture(page, f"#picture-{tab}", None)
            assert wait_for_text(page, f"#answer-{tab}", "image" if kind == "semantic_fpn" else "Score")
        if kind in ("detection", "instances", "poses"):
            assert page.get_by_text("Score threshold").locator("visible=true").count() == 1
        assert page.get_by_text("synthetic").locator("visible=true").count() >= 1
        screenshot(page, f"first-{tab}")
    page.get_by_role("tab", name="Clusters", exact=True).click()
    screenshot(page, "first-clusters")


# Contrast of each text on the page with its background.
CONTRASTS = """() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => {
    const parts = color.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0.5) return color;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const element of document.querySelectorAll('main *')) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3 && n.textContent.trim());
    if (!text.length || !element.checkVisibility() || element.closest('footer')) continue;
    const values = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    found[text[0].textContent.trim()] = (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
  }
  return found;
}"""


def test_text_on_the_page_can_be_read(page):
    """Labels, buttons and tables have a contrast of at least 4.5 to their background."""
    for title in ("Clusters", *TITLES.values()):
        page.get_by_role("tab", name=title, exact=True).click()
        page.wait_for_timeout(500)  # colours change in a transition
        contrasts = page.evaluate(CONTRASTS)
        assert {title, "Image"} <= contrasts.keys()
        assert {text: value for text, value in contrasts.items() if value < 4.5} == {}
    page.get_by_role("tab", name="Clusters", exact=True).click()


def test_an_example_is_answered_when_it_is_clicked(page):
    page.get_by_role("tab", name="Classification", exact=True).click()
    first = page.inner_text("#answer-classification")
    page.locator("#examples-classification button:visible, #examples-classification .gallery-item:visible").nth(
        2
    ).click()
    page.wait_for_function("old => document.querySelector('#answer-classification').innerText !== old", arg=first)
    page.get_by_role("tab", name="Clusters", exact=True).click()


def test_on_a_phone_the_result_comes_before_the_controls(browser, space):
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.set_default_timeout(60_000)
    phone.goto(space)
    wait_for_new_picture(phone, "#clusters", None)
    order = [top_of(phone, name) for name in ("#clusters", "#stage", "#image-clusters", "#find-clusters")]
    assert order == sorted(order)
    screenshot(phone, "phone-clusters")
    for kind, title in TITLES.items():
        tab = slug_of(title)
        open_tab(phone, title)
        result = f"#answer-{tab}" if kind == "classification" else f"#picture-{tab}"
        phone.wait_for_selector(result)
        order = [top_of(phone, name) for name in (result, f"#image-{tab}", f"#predict-{tab}", f"#examples-{tab}")]
        assert order == sorted(order), title
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        screenshot(phone, f"phone-{tab}")
    phone.close()


def open_tab(page, title: str):
    """Open a tab, which on narrow pages may be in a menu."""
    tab = page.get_by_role("tab", name=title, exact=True).locator("visible=true")
    if tab.count() == 0:
        page.locator(".overflow-menu > button:visible").first.click()
        page.locator(".overflow-dropdown button", has_text=title).locator("visible=true").first.click()
    else:
        tab.first.click()


def top_of(page, selector: str) -> float:
    return page.locator(selector).first.bounding_box()["y"]


def slug_of(title: str) -> str:
    return title.lower().replace(" ", "-")


def screenshot(page, name: str):
    """Save a screenshot to the folder in `SCREENSHOTS`, if that is set."""
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=f"{os.environ['SCREENSHOTS']}/{name}.png", full_page=True)


def test_people_see_clusters_change_with_stage_and_scale(page, space):
    upload(page, "clusters", REPOSITORY / "examples" / "space" / "images" / "cat.jpg")
    wait_for_text(page, "#caption", "Stage 1, block 1, scale 1: 112 x 112 patches in 49 clusters.")
    first = wait_for_new_picture(page, "#clusters", None)
    page.locator("#stage input").nth(1).check()
    wait_for_text(page, "#caption", "Stage 2, block 1, scale 1: 56 x 56 patches in 49 clusters.")
    second = wait_for_new_picture(page, "#clusters", first)
    page.locator("#scale input").nth(1).check()
    wait_for_text(page, "#caption", "Stage 2, block 1, scale 2: 56 x 56 patches in 196 clusters.")
    third = wait_for_new_picture(page, "#clusters", second)
    pictures = [pixels_of(page, address) for address in (first, second, third)]
    assert all(np.abs(a - b).mean() > 3 for i, a in enumerate(pictures) for b in pictures[:i])
    page.click("#clusters img", position={"x": 150, "y": 150})
    caption = wait_for_text(page, "#caption", "are one cluster")
    assert int(re.search(r"The (\d+) bright patches are", caption)[1]) >= 1
    fourth = wait_for_new_picture(page, "#clusters", third)
    alone = pixels_of(page, fourth)
    assert alone.mean() < 0.6 * pictures[2].mean()
    page.get_by_label("Classification", exact=True).check()
    wait_for_text(page, "#caption", "Stage 1, block 1, scale 1")
    other = pixels_of(page, wait_for_new_picture(page, "#clusters", fourth))
    assert np.abs(other - pictures[0]).mean() > 3  # pictures of another model
    screenshot(page, "clusters")
    # Earlier captions are of the first model, whose result may come late.
    before = wait_for_text(page, "#caption", "takes 2588 clusters in all blocks and scales.")
    unmerged = page.get_attribute("#clusters img", "src")
    page.locator("#budget input").nth(3).check()
    caption = wait_for_text(page, "#caption", "in place of")
    taken, most = map(int, re.search(r"takes (\d+) clusters in .* in place of (\d+)\.", caption).groups())
    assert taken < most and f"takes {most} clusters in all blocks and scales." in before
    merged = wait_for_new_picture(page, "#clusters", unmerged)
    page.locator("#budget input").nth(0).check()
    assert wait_for_text(page, "#caption", "in all blocks and scales.") == before
    wait_for_new_picture(page, "#clusters", merged)


def test_people_read_the_prediction_of_every_task(page, space):
    """Also checks that the page sends no request to other servers."""
    image = REPOSITORY / "examples" / "space" / "images" / "cat.jpg"
    for kind, title in TITLES.items():
        tab = title.lower().replace(" ", "-")
        page.get_by_role("tab", name=title, exact=True).click()
        upload(page, tab, image)
        page.click(f"#predict-{tab}")
        if kind == "classification":
            answer = wait_for_text(page, f"#answer-{tab}", "%")
            assert re.search(r"^(cat|dog|frog)$", answer, flags=re.MULTILINE)
        else:
            names = ["person"] if kind == "poses" else ["cat", "dog", "owl"]
            wait_for_new_picture(page, f"#picture-{tab}", None)
            page.wait_for_function(
                "([selector, names]) => names.some(n => document.querySelector(selector)?.innerText.includes(n))",
                arg=[f"#answer-{tab}", names],
            )
        screenshot(page, tab)
    assert {address for address in page.requested if not address.startswith((space, "data:", "blob:"))} == set()


def test_the_page_says_what_is_wrong(page):
    page.get_by_role("tab", name="Poses", exact=True).click()
    upload(page, "poses", REPOSITORY / "examples" / "space" / "images" / "cat.jpg")
    page.locator("textarea").last.fill("1, 2, 3")
    page.click("#predict-poses")
    page.get_by_text("Boxes must be lines of four numbers").first.wait_for()
