"""The image processor with the inputs that occur in practice."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.modeling_outputs import SemanticSegmenterOutput

from clustr_hf import ClusTRDetectionImageProcessor, ClusTRImageProcessor, ClusTRPoseImageProcessor


MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def processor():
    return ClusTRImageProcessor()


@pytest.fixture
def plain():
    """Without resizing, cropping or normalisation: the input as RGB in [0, 1]."""
    return ClusTRImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False)


def photograph(width=300, height=200):
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [columns * 255 / width, rows * 255 / height, 127 + 100 * np.sin(columns / 9)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def pixels(processor, image, **kwargs):
    return processor(image, return_tensors="pt", **kwargs).pixel_values


def test_is_the_evaluation_protocol_of_imagenet(processor):
    """Compared with torchvision's transforms: shorter side 256 bicubic, center crop 224, normalisation."""
    reference = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN.tolist(), STD.tolist()),
        ]
    )
    image = photograph()
    torch.testing.assert_close(pixels(processor, image)[0], reference(image), rtol=0, atol=1e-5)


def test_batch_of_different_sizes_becomes_one_tensor(processor):
    images = [photograph(300, 200), photograph(64, 400), photograph(1, 1)]
    assert pixels(processor, images).shape == (3, 3, 224, 224)


def test_greyscale_is_repeated(plain):
    grey = photograph().convert("L")
    found = pixels(plain, grey)[0]
    for channel in found:
        torch.testing.assert_close(channel, torch.tensor(np.asarray(grey)) / 255)


@pytest.mark.parametrize("mode", ["P", "CMYK", "1", "LA", "RGBA", "HSV", "YCbCr"])
def test_any_mode_becomes_rgb(plain, mode):
    image = photograph().convert("L").convert(mode) if mode == "LA" else photograph().convert(mode)
    found = pixels(plain, image)[0]
    expected = torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(found, expected)


def test_transparency_is_laid_on_white(plain):
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert (pixels(plain, image) == 1).all()
    half = pixels(plain, Image.new("RGBA", (40, 40), (0, 0, 0, 128)))
    assert half.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("form", ["I;16", "I", "array", "tensor"])
def test_sixteen_bits_keep_their_brightness(plain, form):
    ramp = np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)
    if form == "array":
        image = ramp
    elif form == "tensor":
        image = torch.from_numpy(ramp)
    else:
        image = Image.fromarray(ramp if form == "I;16" else ramp.astype(np.int32))
        assert image.mode == form
    expected = torch.tensor(ramp.astype(np.float32) / 65535).expand(1, 3, -1, -1)
    torch.testing.assert_close(pixels(plain, image), expected, rtol=0, atol=0.5 / 255 + 1e-6)


def test_thirty_two_bit_greyscale_is_told_by_its_values(plain):
    grey = photograph().convert("L")
    torch.testing.assert_close(pixels(plain, grey.convert("I")), pixels(plain, grey))
    torch.testing.assert_close(pixels(plain, grey.convert("F")), pixels(plain, grey))
    shares = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    torch.testing.assert_close(pixels(plain, shares), pixels(plain, grey))
    for bad in (np.full((40, 40), 70000, dtype=np.int32), np.full((40, 40), np.nan, dtype=np.float32)):
        with pytest.raises(ValueError, match=r"`images` must have grey values in \[0, 65535\]"):
            plain(Image.fromarray(bad))


def test_sixteen_bit_files_keep_their_brightness(plain, tmp_path):
    Image.fromarray(np.full((40, 50), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    for image in (Image.open(tmp_path / "deep.png"), str(tmp_path / "deep.png")):
        assert pixels(plain, image).mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("orientation, transpose", [(6, Image.Transpose.ROTATE_270), (3, Image.Transpose.ROTATE_180)])
def test_exif_rotation_is_undone(plain, tmp_path, orientation, transpose):
    image = photograph(48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    upright = pixels(plain, image.transpose(transpose))
    for turned in (Image.open(tmp_path / "turned.png"), str(tmp_path / "turned.png")):
        torch.testing.assert_close(pixels(plain, turned), upright)


def test_label_maps_belong_to_the_upright_image(plain):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    photograph(48, 32).save(buffer, "PNG", exif=exif)
    batch = plain([Image.open(buffer)], segmentation_maps=[label_map(32, 48)])
    assert batch.pixel_values[0].shape[1:] == batch.labels[0].shape == (48, 32)


def test_truncated_files_are_named(processor, tmp_path):
    buffer = io.BytesIO()
    photograph().save(buffer, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for image in (Image.open(path), str(path)):
        with pytest.raises(ValueError, match=r"`images` must be readable, but .*cut\.jpg could not be decoded"):
            processor(image)


def test_text_files_are_named(processor, tmp_path):
    (tmp_path / "note.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"`images` must be readable, but .*note\.jpg"):
        processor(str(tmp_path / "note.jpg"))


def test_arrays_of_all_layouts_agree(plain):
    array = np.array(photograph())
    expected = pixels(plain, photograph())
    for image in (array, array.transpose(2, 0, 1), torch.from_numpy(array), [array]):
        torch.testing.assert_close(pixels(plain, image), expected)
    torch.testing.assert_close(pixels(plain, array.astype(np.float32) / 255, do_rescale=False), expected)
    mask = array[..., 0] > 127
    torch.testing.assert_close(pixels(plain, mask)[0, 0], torch.from_numpy(mask).float())


@pytest.mark.parametrize("size", [(1, 1), (1, 50)])
def test_a_row_of_colours_is_not_taken_for_a_channel(plain, size):
    array = np.array([[[10, 20, 200]]], dtype=np.uint8).repeat(size[1], axis=1)
    found = pixels(plain, array)
    assert found.shape == (1, 3, *size)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([10, 20, 200]) / 255)


def test_pathlib_paths_are_paths(plain, tmp_path):
    photograph().save(tmp_path / "image.png")
    torch.testing.assert_close(pixels(plain, tmp_path / "image.png"), pixels(plain, photograph()))
    assert pixels(plain, [tmp_path / "image.png"] * 2).shape[0] == 2
    with pytest.raises(ValueError, match=r"`images` must be readable, but .*missing\.png"):
        plain(tmp_path / "missing.png")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(processor, value):
    image = np.zeros((3, 40, 40), dtype=np.float32)
    image[1, 3, 3] = value
    with pytest.raises(ValueError, match="`images` must be finite"):
        processor(image, do_rescale=False)


@pytest.mark.parametrize("image", [None, 3, {"image": 1}, np.zeros((2, 3, 4, 5, 6))])
def test_what_is_no_image_is_refused(processor, image):
    with pytest.raises((ValueError, TypeError)):
        processor(image)


def label_map(width=300, height=200):
    return Image.fromarray((np.mgrid[0:height, 0:width][1] // 30).astype(np.uint8))


def test_label_maps_are_never_blended_and_stay_on_their_image(processor):
    labels = label_map()
    image = Image.merge("RGB", [labels] * 3)
    batch = processor([image], segmentation_maps=[labels], return_tensors="pt", do_normalize=False, do_rescale=False)
    assert batch.labels.shape == (1, 224, 224) and batch.labels.dtype == torch.long
    assert set(batch.labels.unique().tolist()) <= set(range(10))
    agree = (batch.pixel_values[0, 0].round() == batch.labels[0]).float().mean()
    assert agree > 0.8  # all but the blended columns at the borders of the labels


def test_reduced_labels_are_those_of_ade20k(plain):
    labels = np.array([[0, 1, 150, 255]], dtype=np.uint8).repeat(2, axis=0)
    batch = plain([np.zeros((2, 4, 3), dtype=np.uint8)], segmentation_maps=[labels], do_reduce_labels=True)
    assert batch.labels[0].tolist() == [[255, 0, 149, 255]] * 2


def test_palette_label_maps_keep_their_indices(plain):
    labels = label_map()
    labels.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    assert labels.mode == "P"
    batch = plain([photograph()], segmentation_maps=[labels])
    assert batch.labels[0].tolist() == np.asarray(labels).tolist()


def test_label_maps_that_do_not_belong_to_their_image_are_named(processor):
    wrong = [label_map(200, 300), np.zeros((20, 30), dtype=np.uint8), Image.merge("RGB", [label_map()] * 3)]
    for label_map_of_another in wrong:
        with pytest.raises(ValueError, match=r"`segmentation_maps\[1\]` must have one label .* = \(200, 300\)"):
            processor([photograph(), photograph()], segmentation_maps=[label_map(), label_map_of_another])
    with pytest.raises(ValueError, match="`segmentation_maps` must have one map per image, got 1 maps for 2"):
        processor([photograph(), photograph()], segmentation_maps=[label_map()])


def test_batched_tensors_of_images_and_maps_belong_together(plain):
    images, maps = torch.zeros(2, 3, 40, 50, dtype=torch.uint8), torch.full((2, 40, 50), 7)
    for given in (maps, list(maps)):
        batch = plain(images, segmentation_maps=given, return_tensors="pt")
        assert batch.pixel_values.shape == (2, 3, 40, 50) and (batch.labels == 7).all()


@pytest.mark.parametrize("reduce", [False, True])
def test_crops_beyond_the_map_are_ignored_not_class_zero(reduce):
    processor = ClusTRImageProcessor(do_resize=False, do_reduce_labels=reduce)
    image, labels = Image.new("RGB", (100, 100)), Image.fromarray(np.full((100, 100), 5, dtype=np.uint8))
    (label,) = processor([image], segmentation_maps=[labels]).labels
    assert label.shape == (224, 224)
    assert label.unique(return_counts=True)[0].tolist() == [4 if reduce else 5, 255]
    assert (label != 255).sum() == 100 * 100


def test_segmentation_logits_become_maps_of_the_original_sizes(processor):
    logits = torch.zeros(2, 4, 8, 8)
    logits[0, 1, :, :4], logits[0, 2, :, 4:], logits[1, 3] = 5.0, 5.0, 5.0
    maps = processor.post_process_semantic_segmentation(
        SemanticSegmenterOutput(logits=logits), target_sizes=[(20, 40), (33, 17)]
    )
    assert [tuple(m.shape) for m in maps] == [(20, 40), (33, 17)]
    assert (maps[0][:, :20] == 1).all() and (maps[0][:, 20:] == 2).all() and (maps[1] == 3).all()


def test_settings_survive_saving(tmp_path):
    ClusTRImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 36}).save_pretrained(tmp_path)
    reloaded = ClusTRImageProcessor.from_pretrained(tmp_path)
    assert pixels(reloaded, photograph()).shape == (1, 3, 32, 36)


@pytest.fixture
def whole():
    """Whole images with a shorter side of 64 pixels and a longer side of at most 96."""
    return ClusTRImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, do_center_crop=False)


def test_whole_images_of_different_sizes_are_padded_with_a_mask(whole):
    images = [photograph(120, 80), photograph(80, 120), photograph(300, 100)]
    maps = [np.full((image.height, image.width), index, dtype=np.uint8) for index, image in enumerate(images)]
    batch = whole(images, maps, return_tensors="pt")
    sizes = [(64, 96), (96, 64), (32, 96)]
    assert batch.pixel_values.shape == (3, 3, 96, 96) and batch.labels.shape == (3, 96, 96)
    assert batch.pixel_mask.dtype == torch.int64
    for index, (height, width) in enumerate(sizes):
        inside = torch.zeros(96, 96, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(batch.pixel_mask[index] == 1, inside)
        assert (batch.labels[index][inside] == index).all() and (batch.labels[index][~inside] == 255).all()
        assert (batch.pixel_values[index][:, ~inside] == 0).all()
        torch.testing.assert_close(batch.pixel_values[index][:, :height, :width], pixels(whole, images[index])[0])


def test_images_of_one_size_are_not_padded(whole):
    assert whole([photograph(120, 80)] * 2, return_tensors="pt").keys() == {"pixel_values"}
    assert ClusTRImageProcessor()([photograph(120, 80), photograph(80, 120)], return_tensors="pt").keys() == {
        "pixel_values"
    }


def test_padding_can_be_larger_or_left_out(whole):
    batch = whole(photograph(120, 80), return_tensors="pt", pad_size={"height": 70, "width": 128})
    assert batch.pixel_values.shape == (1, 3, 70, 128) and batch.pixel_mask.sum() == 64 * 96
    several = whole([photograph(120, 80), photograph(80, 120)], do_pad=False)
    assert [tuple(image.shape) for image in several.pixel_values] == [(3, 64, 96), (3, 96, 64)]
    assert "pixel_mask" not in several


def test_reduced_labels_of_a_map_as_ade20k_has_them(whole):
    label_map = np.array([[0, 1], [150, 255]], dtype=np.uint8).repeat(64, axis=0).repeat(64, axis=1)
    labels = whole(photograph(128, 128), label_map, do_reduce_labels=True, return_tensors="pt").labels[0]
    assert labels[0, 0] == 255 and labels[0, -1] == 0 and labels[-1, 0] == 149 and labels[-1, -1] == 255


@pytest.mark.parametrize("num_labels", [1, 8, 20])
def test_maps_of_many_classes_are_those_of_all_logits_at_once(num_labels):
    """Classes are resized in groups; the result equals torch's resizing and argmax of all classes."""
    logits = torch.randn(2, num_labels, 7, 9, dtype=torch.float64)
    sizes = [(31, 22), (5, 40)]
    maps = ClusTRImageProcessor().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), sizes)
    for label_map, image_logits, size in zip(maps, logits, sizes):
        resized = torch.nn.functional.interpolate(image_logits[None], size=size, mode="bilinear", align_corners=False)
        assert label_map.dtype == torch.int64 and torch.equal(label_map, resized[0].argmax(dim=0))
    as_tensor = torch.tensor(sizes)
    again = ClusTRImageProcessor().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), as_tensor)
    assert all(torch.equal(*pair) for pair in zip(maps, again))


SLIM = [(2000, 3), (3, 2000), (5000, 1), (1, 5000), (1, 1)]


@pytest.mark.parametrize("size", SLIM)
def test_images_of_extreme_aspect_ratio_have_pixels(size):
    """In the processors of all tasks, sides below one pixel become one pixel, and labels follow their image."""
    image = photograph(size[1], size[0])
    dense = ClusTRImageProcessor(do_center_crop=False, size={"shortest_edge": 64, "longest_edge": 256})
    batch = dense(image, segmentation_maps=np.full(size, 3), return_tensors="pt")
    assert batch["labels"].shape[1:] == batch.pixel_values.shape[2:] and (batch["labels"] == 3).all()
    height, width = batch.pixel_values.shape[2:]
    assert max(height, width) <= 256 and min(height, width) >= 1
    boxes = [{"bbox": [0, 0, size[1], size[0]], "category_id": 0}]
    detection = ClusTRDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    found = detection(image, annotations={"image_id": 1, "annotations": boxes}, return_tensors="pt")
    assert min(found.pixel_values.shape) == 1
    torch.testing.assert_close(found["labels"][0]["boxes"], torch.tensor([[0.5, 0.5, 1, 1]]))
    limited = ClusTRDetectionImageProcessor(size={"max_height": 64, "max_width": 64})(image, return_tensors="pt")
    assert min(limited.pixel_values.shape[2:]) >= 1
    assert ClusTRPoseImageProcessor()(image, return_tensors="pt").pixel_values.isfinite().all()


@pytest.mark.parametrize("size", [(2000, 3), (1, 700), (9000, 50), (6000, 40)])
def test_only_what_the_crop_shows_of_a_long_image_is_resized(size, monkeypatch):
    """Resized whole they would take gigabytes; compared with torchvision's transforms, to within a pixel's shift."""
    image = photograph(size[1], size[0])
    resized = []
    upstream = TorchvisionBackend.resize
    monkeypatch.setattr(
        TorchvisionBackend, "resize", lambda *args, **kw: resized.append(upstream(*args, **kw)) or resized[-1]
    )
    [found] = pixels(ClusTRImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}), image)
    assert resized[0].numel() <= 3 * 32 * 400
    reference = v2.Compose([v2.ToImage(), v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(30)])(image) / 255
    reference = v2.functional.normalize(reference, MEAN.tolist(), STD.tolist())
    shifts = [reference[:, y : y + 28, x : x + 28] for y in range(3) for x in range(3)]
    assert min((shift - found).abs().mean() for shift in shifts) < 0.05


def test_images_that_would_become_gigabytes_are_refused():
    processor = ClusTRImageProcessor(do_center_crop=False, size={"shortest_edge": 256})
    with pytest.raises(ValueError, match=r"`images` must not be enlarged .* \(height, width\) = \(9000, 1\) would"):
        processor(Image.new("RGB", (1, 9000)))


@pytest.mark.parametrize("target", [{"shortest_edge": 61}, {"shortest_edge": 61, "longest_edge": 90}])
def test_ordinary_images_are_resized_as_upstream_does_it(target):
    generator = np.random.default_rng(0)
    for height, width in generator.integers(20, 200, (20, 2)).tolist():
        image = torch.zeros(3, height, width)
        expected = TorchvisionBackend.resize(ClusTRImageProcessor(), image, SizeDict(**target))
        assert ClusTRImageProcessor().resize(image, SizeDict(**target)).shape == expected.shape


ARRAYS = {
    "no rows": (np.zeros((0, 50, 3), np.uint8), r"must have pixels, got one of .* \(0, 50\)"),
    "no columns": (np.zeros((3, 40, 0), np.uint8), r"must have pixels, got one of .* \(40, 0\)"),
    "no pixels": (Image.new("RGB", (0, 5)), r"must have pixels, got one of .* \(5, 0\)"),
    "two channels": (np.zeros((40, 50, 2), np.uint8), r"1, 3 or 4 channels, got \(40, 50, 2\)"),
    "one dimension": (np.zeros(5, np.uint8), r"must be images with 3 dimensions, got \[\(5,\)\]"),
}


@pytest.mark.parametrize("image, message", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize(
    "processor_class", [ClusTRImageProcessor, ClusTRDetectionImageProcessor, ClusTRPoseImageProcessor]
)
def test_arrays_that_are_no_images_are_named(processor_class, image, message):
    with pytest.raises(ValueError, match=f"`images` .*{message}"):
        processor_class()(image)


@pytest.mark.parametrize("value", [5, 1.5, {"a": 1}, object(), b"x"], ids=lambda value: type(value).__name__)
def test_what_is_no_image_is_named_with_its_place(processor, value):
    with pytest.raises(TypeError, match="`images` must be a PIL image, an array, a tensor, a path or a URL, got"):
        processor(value)
    with pytest.raises(TypeError, match=r"`images\[1\]` must be a PIL image"):
        processor([photograph(), value])
    with pytest.raises(TypeError, match=r"`segmentation_maps\[1\]` must be a PIL image"):
        processor([photograph(), photograph()], segmentation_maps=[np.zeros((200, 300)), value])
    with pytest.raises(ValueError, match="`images` must hold at least one image, got none"):
        processor([])
