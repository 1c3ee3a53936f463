"""Pictures show the right content, checked pixel by pixel."""

import numpy as np
import pytest
import torch
from hub_repositories import PIPELINES, make_image, make_model
from PIL import Image
from transformers import pipeline

from clustr_hf import ClusTRConfig, ClusTRModel
from clustr_hf.visualization import (
    BLUE,
    GREEN,
    ORANGE,
    class_colors,
    coarsen_clusters,
    draw_answers,
    draw_clusters,
    draw_detections,
    draw_keypoints,
    draw_segmentation,
    find_cluster_maps,
    plot_clusters,
    plot_compared_curves,
    plot_detections,
    plot_keypoints,
    plot_predictions,
    plot_segmentation,
    plot_training_curves,
    prepare_image,
    readable_on,
)


@pytest.fixture
def halves():
    """An image whose left half is red and right half blue, and clusters that equal the halves."""
    array = np.zeros((40, 60, 3), dtype=np.uint8)
    array[:, :30, 0], array[:, 30:, 2] = 200, 100
    cluster_index = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(4, -1).flatten()
    return Image.fromarray(array), cluster_index


def test_clusters_are_painted_in_their_mean_colour_with_a_line_between(halves):
    image, cluster_index = halves
    painted = np.asarray(draw_clusters(image, cluster_index, (4, 6)))
    assert painted.shape == (40, 60, 3)
    assert (painted[:, :30] == (200, 0, 0)).all() and (painted[:, 31:] == (0, 0, 100)).all()
    assert (painted[:, 30] == 255).all()


def test_unused_labels_do_no_harm(halves):
    image, cluster_index = halves
    assert draw_clusters(image, cluster_index * 7, (4, 6)).size == image.size


def test_wrong_grid_is_named(halves):
    with pytest.raises(ValueError, match=r"`cluster_index` must have shape \(25,\) for a grid of 5 x 5"):
        draw_clusters(*halves, (5, 5))


def rendered(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_figures_render_and_carry_their_titles(halves):
    image, cluster_index = halves
    figure = plot_clusters(image, {"stage 1": (cluster_index, (4, 6))})
    assert [axis.get_title() for axis in figure.axes] == ["image", "stage 1: 2 clusters"]
    assert rendered(figure).std() > 0
    figure = plot_predictions([image, image, image], ["a", "b", "c"], ["a", "b", "d"], columns=2)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c, is d", ""]
    assert rendered(figure).std() > 0


def test_no_images_are_named():
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        plot_predictions([], [], [])


def test_curves_hold_the_logged_points():
    history = [
        {"epoch": 1, "loss": 2.0},
        {"epoch": 1, "eval_loss": 1.5, "eval_accuracy": 0.5},
        {"epoch": 2, "loss": 1.0},
        {"epoch": 2, "eval_loss": 1.2, "eval_accuracy": 0.7},
        {"train_loss": 1.5, "epoch": 2},
    ]
    loss_axis, metric_axis = plot_training_curves(history).axes
    assert [line.get_ydata().tolist() for line in loss_axis.lines] == [[2.0, 1.0], [1.5, 1.2]]
    assert [line.get_ydata().tolist() for line in metric_axis.lines] == [[0.5, 0.7]]
    assert metric_axis.get_ylabel() == "accuracy"
    assert plot_training_curves(history, "eval_mean_iou").axes[1].get_ylabel() == "mean IoU"
    assert rendered(plot_training_curves(history[:1])).std() > 0


def test_compared_curves_are_means_and_ranges_over_runs():
    runs = [
        [{"epoch": 1, "loss": 2.0 + run}, {"epoch": 1, "eval_accuracy": 0.5}, {"epoch": 2, "loss": 1.0}]
        for run in (0, 1)
    ]
    figure = plot_compared_curves({"a": runs, "b": runs[:1]})
    loss_axis, metric_axis = figure.axes
    assert [line.get_ydata().tolist() for line in loss_axis.lines] == [[2.5, 1.0], [2.0, 1.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    band = loss_axis.collections[0].get_paths()[0].vertices
    assert {(1.0, 2.0), (1.0, 3.0), (2.0, 1.0)} <= set(map(tuple, band.tolist()))
    assert metric_axis.lines[0].get_xydata().tolist() == [[1, 0.5]] and metric_axis.get_ylabel() == "accuracy"
    assert rendered(figure).std() > 0


def test_runs_that_cannot_be_compared_are_named():
    at_epochs = [[{"epoch": epoch, "loss": 1.0, "eval_accuracy": 0.5}] for epoch in (1, 2)]
    for histories in (at_epochs, []):
        with pytest.raises(ValueError, match="`log_histories` must hold runs of 'a' that log 'loss' at the same"):
            plot_compared_curves({"a": histories})


@pytest.mark.parametrize("num_labels", [2, 11, 21, 150])
def test_colours_of_classes_differ(num_labels):
    colors = class_colors(num_labels)
    assert colors.shape == (num_labels, 3) and colors.dtype == np.uint8
    assert len({tuple(color) for color in colors.tolist()}) == num_labels
    neighbours = np.abs(colors[1:].astype(int) - colors[:-1].astype(int)).sum(axis=1)
    assert neighbours.min() > 100
    assert np.array_equal(class_colors(2), colors[:2])  # the same whatever the number of classes


def test_classes_are_laid_over_the_image_and_what_does_not_count_is_dark(halves):
    image, _ = halves
    segmentation = torch.zeros(40, 60, dtype=torch.int64)
    segmentation[:20, 30:], segmentation[20:, 30:] = 2, 255
    painted = np.asarray(draw_segmentation(image, segmentation, 3, opacity=0.5)).astype(int)
    colors = class_colors(3).astype(int)
    assert np.abs(painted[:, :30] - (colors[0] + (200, 0, 0)) / 2).max() <= 0.5
    assert np.abs(painted[:20, 30:] - (colors[2] + (0, 0, 100)) / 2).max() <= 0.5
    assert (painted[20:, 30:] == (0, 0, 50)).all()
    with pytest.raises(ValueError, match=r"`segmentation` must have the size of `image`.* got \(60, 40\)"):
        draw_segmentation(image, segmentation.T, 3)


def test_truth_and_prediction_stand_beside_the_image_with_a_legend(halves):
    image, _ = halves
    truth = torch.full((40, 60), 255)
    truth[:, 30:] = 1
    figure = plot_segmentation([image, image], [truth, truth], [torch.zeros_like(truth), truth], ["sky", "sea", "bird"])
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "prediction", "", "", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "sea"]  # those that occur
    prediction = torch.zeros_like(truth)
    expected = [image, draw_segmentation(image, truth, 3), draw_segmentation(image, prediction, 3)]
    for axis, picture in zip(figure.axes, expected):
        assert np.array_equal(axis.images[0].get_array(), np.asarray(picture))
    assert rendered(figure).std() > 0
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        plot_segmentation([], [], [], ["sky"])


BOXES = torch.tensor([[5.0, 5.0, 20.0, 30.0], [35.0, 10.0, 35.0, 10.0]])  # the second one has no extent


def test_boxes_are_drawn_in_the_colours_of_their_classes(halves):
    image, _ = halves
    labels = torch.tensor([2, 0])
    drawn = np.asarray(draw_detections(image, BOXES, labels, ["a", "b", "c"], with_text=False))
    colors = class_colors(3)
    for x, y in ((5, 15), (20, 15), (12, 5), (12, 30)):
        assert (drawn[y, x] == colors[2]).all()
    assert (drawn[15, 12] == (200, 0, 0)).all() and (drawn[35, 55] == (0, 0, 100)).all()
    assert (drawn == colors[0]).all(axis=-1).any()
    written = np.asarray(draw_detections(image, BOXES, labels, ["a", "b", "c"], scores=torch.tensor([0.9, 0.1])))
    assert (written != drawn).any()
    nothing = draw_detections(image, torch.zeros(0, 4), torch.zeros(0).long(), ["a"], masks=torch.zeros(0, 40, 60) > 0)
    assert np.array_equal(np.asarray(nothing), np.asarray(image))
    with pytest.raises(ValueError, match="`labels` must have one entry for each of the 2 boxes, got 1"):
        draw_detections(image, BOXES, labels[:1], ["a", "b", "c"])


def test_neighbouring_masks_of_one_class_have_colours_of_their_own(halves):
    image, _ = halves
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 10:30, 5:15], masks[1, 10:30, 15:25] = True, True
    boxes = torch.tensor([[5.0, 10.0, 15.0, 30.0], [15.0, 10.0, 25.0, 30.0]])
    drawn = np.asarray(draw_detections(image, boxes, torch.tensor([0, 0]), ["a"], masks=masks, with_text=False)).astype(
        int
    )
    assert np.abs(drawn[20, 10] - drawn[20, 20]).max() > 30
    assert (drawn[35, 10] == (200, 0, 0)).all()
    over = torch.stack([masks[0], masks.any(dim=0)])  # the first one lies above the second
    wide = torch.tensor([[5.0, 10.0, 15.0, 30.0], [5.0, 10.0, 25.0, 30.0]])
    covered = np.asarray(draw_detections(image, wide, torch.tensor([0, 0]), ["a"], masks=over, with_text=False))
    assert (covered[20, 10] == drawn[20, 10]).all() and (covered[20, 20] == drawn[20, 20]).all()
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 1\), got values from 0 to 1"):
        draw_detections(image, boxes, torch.tensor([0, 1]), ["a"])


def contrast(first, second):
    """Contrast of two colours, as defined by the Web Content Accessibility Guidelines 2.1."""
    luminances = []
    for color in (first, second):
        red, green, blue = (
            value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
            for value in (channel / 255 for channel in color)
        )
        luminances.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize("background", ["white", "black", (120, 130, 140)])
def test_labels_can_be_read_on_any_image(background):
    """Measured in the picture: the background has the class colour, and the text a contrast of at least 4.5 to it."""
    image, count = Image.new("RGB", (400, 300), background), 60
    colors = class_colors(count)
    assert all(contrast(color, readable_on(color)) >= 4.5 for color in colors.tolist())
    for label in range(0, count, 5):
        boxes = torch.tensor([[40.0, 60.0, 200.0, 260.0]])
        drawn = draw_detections(image, boxes, torch.tensor([label]), ["class"] * count, torch.tensor([0.87]))
        ground = np.asarray(drawn)[48:59, 40:80].reshape(-1, 3).tolist()  # above the box
        own = tuple(colors[label].tolist())
        assert sum(tuple(pixel) == own for pixel in ground) > 0.3 * len(ground)
        assert max(contrast(own, pixel) for pixel in ground) >= 4.5


@pytest.mark.parametrize(
    "box", [(0, 0, 9, 9), (290, 0, 299, 12), (295, 195, 299, 199), (0, 198, 3, 199), (1, 3, 250, 190)]
)
def test_labels_are_never_cut_off(box):
    """They have the same width and height wherever the box is."""
    color = class_colors(1)[0]
    sizes = set()
    for corners in ((100, 100, 104, 104), box):
        boxes = torch.tensor([corners], dtype=torch.float32)
        drawn = draw_detections(Image.new("RGB", (300, 200), "white"), boxes, torch.tensor([0]), ["a long name"])
        plain = draw_detections(
            Image.new("RGB", (300, 200), "white"), boxes, torch.tensor([0]), ["a long name"], with_text=False
        )
        rows, columns = np.nonzero((np.asarray(drawn) != np.asarray(plain)).any(axis=-1))
        edge = np.asarray(drawn) == color
        assert edge.any()
        sizes.add((np.ptp(rows) // 4, np.ptp(columns) // 4))
    assert len(sizes) == 1


def test_crowds_have_no_labels_unless_they_are_asked_for():
    image, boxes = Image.new("RGB", (300, 200)), torch.tensor([[40.0, 60.0, 90.0, 90.0]]).repeat(31, 1)
    labels = torch.zeros(31, dtype=torch.int64)
    silent = np.asarray(draw_detections(image, boxes, labels, ["a"]))
    assert not (silent[40:58] > 0).any()
    assert (np.asarray(draw_detections(image, boxes, labels, ["a"], with_text=True))[40:58] > 0).any()
    assert (np.asarray(draw_detections(image, boxes[:30], labels[:30], ["a"]))[40:58] > 0).any()


def test_truth_and_prediction_of_detections_stand_side_by_side(halves):
    image, _ = halves
    truth = {"boxes": BOXES[:1], "labels": torch.tensor([1])}
    prediction = {**truth, "scores": torch.tensor([0.5])}
    figure = plot_detections([image, image], [truth, truth], [prediction, prediction], ["a", "b"])
    assert [axis.get_title() for axis in figure.axes] == ["truth", "prediction", "", ""]
    expected = draw_detections(image, names=["a", "b"], **prediction)
    assert np.array_equal(figure.axes[1].images[0].get_array(), np.asarray(expected))
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        plot_detections([], [], [], ["a"])


NAMES, EDGES = ["nose", "left_eye", "right_eye"], [(0, 1), (0, 2), (1, 2)]


def test_skeletons_are_drawn_in_the_colours_of_their_sides(halves):
    image, _ = halves
    # x, y of the nose, the left and the right eye of two persons
    keypoints = torch.tensor([[[15.0, 30.0], [25.0, 10.0], [5.0, 10.0]], [[45.0, 30.0], [55.0, 10.0], [35.0, 10.0]]])
    scores = torch.tensor([[0.9, 0.9, 0.9], [0.9, 0.1, 0.9]])
    drawn = np.asarray(draw_keypoints(image, keypoints, NAMES, EDGES, scores))
    blue, orange, green = (to_rgb_of(color) for color in (BLUE, ORANGE, GREEN))
    for (x, y), color in (
        ((15, 30), green), ((25, 10), blue), ((5, 10), orange), ((20, 20), blue), ((10, 20), orange), ((15, 10), green),
        ((45, 30), green), ((35, 10), orange), ((40, 20), orange),
    ):  # fmt: skip
        assert (drawn[y, x] == color).all()
    assert (drawn[10, 55] == (0, 0, 100)).all() and (drawn[20, 50] == (0, 0, 100)).all()  # below the threshold
    everything = np.asarray(draw_keypoints(image, keypoints, NAMES, EDGES))
    assert (everything[10, 55] == blue).all()
    lost = keypoints.clone()
    lost[1, 1] = float("nan")
    assert np.array_equal(np.asarray(draw_keypoints(image, lost, NAMES, EDGES)), drawn)
    nobody = draw_keypoints(image, torch.zeros(0, 3, 2), NAMES, EDGES)
    assert np.array_equal(np.asarray(nobody), np.asarray(image)) and nobody is not image
    arrays = draw_keypoints(image, keypoints.numpy(), NAMES, EDGES, scores.numpy())
    assert np.array_equal(np.asarray(arrays), drawn)
    for wrong, message in (
        ({"names": NAMES[:2], "edges": []}, r"`keypoints` must have shape \(2, 2, 2\), like `names`, got \(2, 3, 2\)"),
        (
            {"keypoints": torch.zeros(2, 3, 3)},
            r"`keypoints` must have shape \(2, 3, 2\), like `names`, got \(2, 3, 3\)",
        ),
        ({"scores": scores[:1]}, r"`scores` must have shape \(2, 3\), like `keypoints`, got \(1, 3\)"),
        ({"edges": [(0, 3)]}, r"`edges` must hold pairs of keypoints in \[0, 3\), got \[\(0, 3\)\]"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_keypoints(image, **{"keypoints": keypoints, "names": NAMES, "edges": EDGES, **wrong})


def to_rgb_of(color):
    return tuple(int(color[start : start + 2], 16) for start in (1, 3, 5))


def test_true_and_predicted_skeletons_stand_side_by_side(halves):
    image, _ = halves
    truth = torch.tensor([[[15.0, 30.0, 2.0], [25.0, 10.0, 1.0], [0.0, 0.0, 0.0]]])
    found = torch.tensor([[[15.0, 30.0, 0.9], [25.0, 10.0, 0.2], [5.0, 10.0, 0.4]]])
    nobody = torch.zeros(0, 3, 3)
    figure = plot_keypoints([image, image], [truth, nobody], [found, nobody], NAMES, EDGES)
    assert [axis.get_title() for axis in figure.axes] == ["truth", "prediction", "", ""]
    expected = [
        draw_keypoints(image, truth[..., :2], NAMES, EDGES, truth[..., 2], 0.0),
        draw_keypoints(image, found[..., :2], NAMES, EDGES, found[..., 2], 0.3),
        image,
        image,
    ]
    for axis, picture in zip(figure.axes, expected):
        assert np.array_equal(axis.images[0].get_array(), np.asarray(picture))
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        plot_keypoints([], [], [], NAMES, EDGES)


def test_cluster_maps_are_what_the_model_says():
    model, _ = make_model("semantic_fpn")
    pixel_values = torch.rand(1, 3, 64, 96)
    maps = find_cluster_maps(model, pixel_values)
    assert [(m.stage, m.block, m.scale) for m in maps] == [(1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2)]
    assert [m.grid_size for m in maps] == [(32, 48), (32, 48), (16, 24), (16, 24)]
    said = model.clustr(pixel_values, output_clusters=True).cluster_indices
    assert all(torch.equal(m.cluster_index, index[0]) for m, index in zip(maps, [i for pair in said for i in pair]))
    assert maps[0].num_clusters == 96
    with pytest.raises(ValueError, match=r"must be of one image, \(1, C, H, W\), got \(2, 3, 64, 96\)"):
        find_cluster_maps(model, pixel_values.expand(2, -1, -1, -1))
    assert not any(module._forward_hooks for module in model.modules() if type(module).__name__ == "ClusTRBlock")


def test_coarser_models_have_the_same_weights():
    model, _ = make_model("poses")
    coarse = coarsen_clusters(model, 4)
    assert coarse.config.reduction_ratios == [[64, 16], [16, 4], [1], [1]]
    assert model.config.reduction_ratios == [[16, 4], [4, 1], [1], [1]]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in coarse.state_dict().items())
    pixel_values = torch.rand(1, 3, 64, 64)
    numbers = [[m.num_clusters for m in find_cluster_maps(each, pixel_values)] for each in (model, coarse)]
    assert numbers == [[64, 256, 64, 256], [16, 64, 16, 64]]
    with pytest.raises(ValueError, match="`factor` must be positive, got 0"):
        coarsen_clusters(model, 0)
    grid = ClusTRModel(ClusTRConfig.from_variant("nano", attention_type="spatial_reduction"))
    assert find_cluster_maps(grid, torch.randn(1, 3, 32, 32)) == []
    with pytest.raises(ValueError, match="`model` must have clusters, got one with `attention_type` 'spatial_red"):
        coarsen_clusters(grid, 2)


def test_images_are_prepared_whole_and_normalised():
    _, processor = make_model("classification")
    image, pixel_values = prepare_image(make_image((200, 100)), processor, 64)
    assert image.size == (128, 64) and pixel_values.shape == (1, 3, 64, 128)
    expected = processor(image, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, expected)
    assert prepare_image(make_image((200, 20)), processor, 64, 100)[0].size == (100, 10)


def test_one_cluster_is_shown_alone():
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    pixels = np.asarray(draw_clusters(image, torch.tensor([0, 1, 1, 0]), (2, 2), highlighted=1))
    bright = np.zeros((4, 4), dtype=bool)
    bright[:2, 2:] = bright[2:, :2] = True
    assert (pixels[bright] == [200, 100, 50]).all() and (pixels[~bright] == [40, 20, 10]).all()


@pytest.mark.parametrize("kind", ["semantic_fpn", "detection", "instances", "poses"])
def test_answers_of_pipelines_are_drawn_as_their_outputs_are(kind):
    """The picture of a pipeline's answer equals that of the processor's output, drawn by the function of the task."""
    model, processor = make_model(kind)
    image = make_image((160, 120))
    run = pipeline(PIPELINES[kind], model=model, image_processor=processor)
    parameters = {"semantic_fpn": {}, "poses": {"boxes": [[10, 10, 60, 90], [80, 5, 60, 100]]}}.get(
        kind, {"threshold": 0.3}
    )
    answers = run(image, **parameters)
    drawn = np.asarray(draw_answers(image, answers, model.config)).astype(int)
    assert drawn.shape == (120, 160, 3)
    names = list(model.config.id2label.values())
    if kind == "poses":
        points = torch.tensor([[[point["x"], point["y"]] for point in person["keypoints"]] for person in answers])
        expected = draw_keypoints(image, points, names, model.config.edges)
    else:
        with torch.no_grad():
            output = model(**processor(image, return_tensors="pt"))
        size = [(120, 160)]
        if kind == "semantic_fpn":
            [label_map] = processor.post_process_semantic_segmentation(output, size)
            expected = draw_segmentation(image, label_map, len(names))
        elif kind == "detection":
            [found] = processor.post_process_object_detection(output, 0.3, size)
            boxes = found["boxes"].int().float()  # as the pipeline rounds them
            expected = draw_detections(image, boxes, found["labels"], names, found["scores"])
        else:
            assert len(answers) > 1
            expected = draw_detections(
                image,
                torch.stack([box_of(answer["mask"]) for answer in answers]),
                torch.tensor([names.index(answer["label"]) for answer in answers]),
                names,
                torch.tensor([answer["score"] for answer in answers]),
                torch.stack([torch.from_numpy(np.array(answer["mask"]) > 0) for answer in answers]),
            )
    assert np.abs(drawn - np.asarray(expected)).max() == 0
    assert np.abs(drawn - np.asarray(image)).mean() > 0.5


def box_of(mask):
    rows, columns = np.nonzero(np.array(mask))
    return torch.tensor([columns.min(), rows.min(), columns.max(), rows.max()], dtype=torch.float32)


def test_answers_without_anything_to_draw():
    image, config = make_image(), ClusTRConfig(num_labels=2)
    assert np.array_equal(np.asarray(draw_answers(image, [], config)), np.asarray(image))
    with pytest.raises(ValueError, match=r"must have masks, boxes or keypoints, got \['label', 'score'\]"):
        draw_answers(image, [{"label": "LABEL_0", "score": 0.5}], config)
