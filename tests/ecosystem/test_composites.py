"""Models of transformers with ClusTR as backbone or vision encoder: those listed in docs/composites.md."""

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    DetrConfig,
    DPTConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from clustr_hf import ClusTRBackbone, ClusTRConfig, ClusTRForPoseEstimation, ClusTRModel


STAGES = ["stage1", "stage2", "stage3", "stage4"]
IMAGE_TOKEN = 55


def encoder_config(**overrides) -> ClusTRConfig:
    """A small encoder with the paper's strides and widths 16, 16, 32, 64."""
    settings = {"hidden_sizes": [16, 16, 32, 64], "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
    strides = {"patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2]}
    return ClusTRConfig.from_variant("nano", **settings, **strides, **overrides)


def backbone_config(first: int = 1, **overrides) -> ClusTRConfig:
    return encoder_config(out_features=STAGES[first - 1 :], **overrides)


def images(*size: int) -> torch.Tensor:
    return torch.rand(2, 3, *(size or (64, 96)), generator=torch.Generator().manual_seed(0))


def text_ids(*before: int, length: int = 5) -> torch.Tensor:
    numbers = torch.randint(3, 50, (2, length), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.tensor([list(before)] * 2, dtype=torch.long), numbers], dim=1)


def bert_config(**overrides) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=60, **sizes, **overrides)


def objects(with_masks: bool = False) -> list[dict]:
    """Two objects per image, as labels of DETR."""
    label = {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.2], [0.6, 0.5, 0.3, 0.4]])}
    if with_masks:
        label["masks"] = torch.zeros(2, 64, 96)
        label["masks"][0, 20:32, 20:40] = label["masks"][1, 20:40, 50:70] = 1
    return [dict(label), dict(label)]


LAYERS = {"encoder_layers": 1, "encoder_ffn_dim": 32, "decoder_layers": 2, "decoder_ffn_dim": 32}
HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 5}


def detr_like(prefix: str, first: int = 1, suffix: str = "ForObjectDetection", **settings):
    """A detector of the DETR family and its inputs."""
    settings = {"d_model": 32, "num_labels": 3, **LAYERS, **HEADS, **settings}
    config_class = getattr(transformers, f"{prefix}Config")
    config = config_class(backbone_config=backbone_config(first), use_timm_backbone=False, **settings)
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    labels = objects(with_masks=suffix == "ForSegmentation")
    return getattr(transformers, prefix + suffix)(config), {
        "pixel_values": images(),
        "pixel_mask": mask,
        "labels": labels,
    }


def rt_detr_like(prefix: str):
    settings = {"d_model": 32, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 32, 64], "num_labels": 3}
    strides = {"feat_strides": [8, 16, 32], "decoder_in_channels": [32, 32, 32], "num_denoising": 0}
    config_class = getattr(transformers, f"{prefix}Config")
    config = config_class(backbone_config=backbone_config(2), **settings, **strides, **LAYERS, **HEADS)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config)
    return model, {"pixel_values": images(), "labels": objects()}


def grounding_dino_like(prefix: str):
    settings = {"d_model": 32, "num_feature_levels": 4, "max_text_len": 8, **LAYERS, **HEADS}
    config_class = getattr(transformers, f"{prefix}Config")
    config = config_class(backbone_config=backbone_config(2), text_config=bert_config(), **settings)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config)
    return model, {"pixel_values": images(), "input_ids": text_ids(), "attention_mask": torch.ones(2, 5).long()}


def omdet_turbo():
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_config = CLIPTextConfig(vocab_size=60, max_position_embeddings=8, projection_dim=24, eos_token_id=2, **text)
    widths = {"encoder_hidden_dim": 32, "decoder_hidden_dim": 32, "d_model": 32, "task_encoder_hidden_dim": 32}
    text_widths = {"class_embed_dim": 24, "text_projection_in_dim": 24, "text_projection_out_dim": 24}
    layers = {"num_hidden_layers": 1, "decoder_num_layers": 1, "num_queries": 5, "decoder_num_heads": 2}
    config = transformers.OmDetTurboConfig(
        backbone_config=backbone_config(2),
        text_config=text_config,
        encoder_in_channels=[16, 32, 64],
        vision_features_channels=[32, 32, 32],
        encoder_attention_heads=2,
        apply_layernorm_after_vision_backbone=False,  # which requires maps (B, h, w, C)
        **widths,
        **text_widths,
        **layers,
    )
    classes, task = text_ids(length=7).repeat(2, 1), text_ids(length=7)
    return transformers.OmDetTurboForObjectDetection(config), {
        "pixel_values": images(64, 64),
        "classes_input_ids": classes,
        "classes_attention_mask": torch.ones_like(classes),
        "tasks_input_ids": task,
        "tasks_attention_mask": torch.ones_like(task),
        "classes_structure": torch.tensor([2, 2]),
    }


def mask_labels() -> dict:
    labels = objects(with_masks=True)
    return {"mask_labels": [label["masks"] for label in labels], "class_labels": [torch.tensor([0, 2])] * 2}


def mask_former():
    decoder_config = DetrConfig(d_model=32, **LAYERS, **HEADS)
    config = transformers.MaskFormerConfig(
        backbone_config=backbone_config(), decoder_config=decoder_config, fpn_feature_size=32, mask_feature_size=32
    )
    return transformers.MaskFormerForInstanceSegmentation(config), {"pixel_values": images(), **mask_labels()}


SMALL_MASK_FORMER = {"encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}


def mask2former():
    widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "dim_feedforward": 32, "num_queries": 5}
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone_config(), train_num_points=50, **widths, **SMALL_MASK_FORMER
    )
    return transformers.Mask2FormerForUniversalSegmentation(config), {"pixel_values": images(), **mask_labels()}


def one_former():
    widths = {"hidden_dim": 64, "conv_dim": 64, "mask_dim": 64, "dim_feedforward": 32, "num_queries": 5}
    text = {"text_encoder_width": 64, "text_encoder_num_layers": 1, "text_encoder_vocab_size": 60}
    lengths = {"text_encoder_context_length": 7, "text_encoder_n_ctx": 1, "max_seq_len": 7, "task_seq_len": 7}
    config = transformers.OneFormerConfig(
        backbone_config=backbone_config(),
        is_training=True,
        query_dec_layers=1,
        train_num_points=50,
        **widths,
        **text,
        **lengths,
        **SMALL_MASK_FORMER,
    )
    tasks, texts = text_ids(length=7).float(), text_ids(length=7)[:, None].repeat(1, 4, 1)
    inputs = {"pixel_values": images(), "task_inputs": tasks, "text_inputs": texts, **mask_labels()}
    return transformers.OneFormerForUniversalSegmentation(config), inputs


def upernet():
    config = transformers.UperNetConfig(
        backbone_config=backbone_config(),
        hidden_size=16,
        auxiliary_in_channels=32,
        auxiliary_channels=16,
        num_labels=3,
    )
    labels = torch.randint(0, 3, (2, 64, 96))
    return transformers.UperNetForSemanticSegmentation(config), {"pixel_values": images(), "labels": labels}


def vit_matte():
    config = transformers.VitMatteConfig(
        backbone_config=ClusTRConfig.from_variant("nano", num_channels=4),  # with total stride 16
        hidden_size=160,
        fusion_hidden_sizes=[16, 16, 16, 16],
        convstream_hidden_sizes=[8, 8, 8],
    )
    pixel_values = torch.cat([images(), torch.rand(2, 1, 64, 96)], dim=1)  # and a trimap
    return transformers.VitMatteForImageMatting(config), {"pixel_values": pixel_values}


def hybrid_dpt(suffix: str):
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    config = DPTConfig(
        is_hybrid=True,
        backbone_config=encoder_config(out_features=STAGES[:3]),
        backbone_featmap_shape=[1, 32, 4, 4],
        neck_ignore_stages=[0, 1],
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        readout_type="project",
        num_labels=3,
        **sizes,
    )
    labels = {"labels": torch.randint(0, 3, (2, 64, 64))} if suffix == "ForSemanticSegmentation" else {}
    model = getattr(transformers, f"DPT{suffix}")(config)
    if not labels:  # new weights predict depth 0, which gives no gradient
        torch.nn.init.constant_(model.head.head[-2].bias, 1.0)
    return model, {"pixel_values": images(64, 64), **labels}


def tvp():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    grid = {"max_grid_col_position_embeddings": 10, "max_grid_row_position_embeddings": 10}
    config = transformers.TvpConfig(
        backbone_config=encoder_config(),
        vocab_size=60,
        max_img_size=96,
        visual_prompt_size=8,
        num_frames=2,
        **sizes,
        **grid,
    )
    ids = text_ids()[:1]  # its embeddings take a single video
    video = images(96, 96)[None]
    times = tuple(torch.tensor([value]) for value in (1.0, 0.0, 1.0))
    inputs = {"pixel_values": video, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": times}
    return transformers.TvpForVideoGrounding(config), inputs


def text_detector():
    """A neck on maps of all stages, as in PaddlePaddle's OCR models."""
    config = transformers.PPOCRV5MobileDetConfig(
        backbone_config=backbone_config(), layer_list_out_channels=[8, 8, 8, 8], neck_out_channels=32
    )
    return transformers.PPOCRV5MobileDetForObjectDetection(config), {"pixel_values": images()}


def dual_encoder():
    config = VisionTextDualEncoderConfig(vision_config=encoder_config(), text_config=bert_config(), projection_dim=16)
    inputs = {"input_ids": text_ids(), "pixel_values": images(), "return_loss": True}
    return VisionTextDualEncoderModel(config), inputs


DECODERS = {
    "bert": lambda: bert_config(is_decoder=True, add_cross_attention=True),
    "gpt2": lambda: GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, add_cross_attention=True),
    "trocr": lambda: TrOCRConfig(
        vocab_size=60,
        d_model=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        cross_attention_hidden_size=64,
    ),
}


def encoder_decoder(decoder: str):
    vision_config = encoder_config(flatten_last_hidden_state=True)
    config = VisionEncoderDecoderConfig(encoder=vision_config, decoder=DECODERS[decoder]())
    config.pad_token_id, config.decoder_start_token_id = 0, 1
    inputs = {"pixel_values": images(), "decoder_input_ids": text_ids(), "labels": text_ids()}
    return VisionEncoderDecoderModel(config), inputs


def language_config(config_class):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return config_class(vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes, **heads)


def language_model(prefix: str, text_class, is_flat: bool, **settings):
    """A language model that sees an image as 2 x 2 tokens."""
    vision_config = encoder_config(flatten_last_hidden_state=is_flat)
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision_config, text_config=language_config(text_class), image_token_id=IMAGE_TOKEN, **settings
    )
    ids = text_ids(*[IMAGE_TOKEN] * 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "pixel_values": images(64, 64)}
    return getattr(transformers, f"{prefix}ForConditionalGeneration")(config), inputs


COMPOSITES = {
    "VisionTextDualEncoder": dual_encoder,
    **{f"VisionEncoderDecoder-{decoder}": lambda decoder=decoder: encoder_decoder(decoder) for decoder in DECODERS},
    "UperNet": upernet,
    "Detr": lambda: detr_like("Detr"),
    "Detr-segmentation": lambda: detr_like("Detr", suffix="ForSegmentation"),
    "TableTransformer": lambda: detr_like("TableTransformer"),
    "ConditionalDetr": lambda: detr_like("ConditionalDetr"),
    "ConditionalDetr-segmentation": lambda: detr_like("ConditionalDetr", suffix="ForSegmentation"),
    "DeformableDetr": lambda: detr_like("DeformableDetr", first=2),
    "DeformableDetr-two-stages": lambda: detr_like(
        "DeformableDetr", first=2, two_stage=True, with_box_refine=True, two_stage_num_proposals=5
    ),
    "DabDetr": lambda: detr_like("DabDetr", hidden_size=32),
    "RTDetr": lambda: rt_detr_like("RTDetr"),
    "RTDetrV2": lambda: rt_detr_like("RTDetrV2"),
    "DFine": lambda: rt_detr_like("DFine"),
    "Deimv2": lambda: rt_detr_like("Deimv2"),
    "GroundingDino": lambda: grounding_dino_like("GroundingDino"),
    "MMGroundingDino": lambda: grounding_dino_like("MMGroundingDino"),
    "OmDetTurbo": omdet_turbo,
    "MaskFormer": mask_former,
    "Mask2Former": mask2former,
    "OneFormer": one_former,
    "VitMatte": vit_matte,
    "DPT-hybrid": lambda: hybrid_dpt("ForDepthEstimation"),
    "DPT-hybrid-segmentation": lambda: hybrid_dpt("ForSemanticSegmentation"),
    "Tvp": tvp,
    "PPOCRV5MobileDet": text_detector,
    "FastVlm": lambda: language_model("FastVlm", Qwen2Config, is_flat=False),
    "DeepseekVL": lambda: language_model("DeepseekVL", LlamaConfig, is_flat=True),
    "Cohere2Vision": lambda: language_model(
        "Cohere2Vision", LlamaConfig, is_flat=True, downsample_factor=1, alignment_intermediate_size=32
    ),
}
TARGETS = ("labels", "mask_labels", "class_labels")


def make_composite(name: str):
    try:
        return COMPOSITES[name]()
    except AttributeError as error:  # the module is missing in older transformers
        if "module transformers" not in str(error):
            raise
        pytest.skip(str(error))


def outputs_of(model, inputs) -> list[torch.Tensor]:
    """Tensors of the output in evaluation mode, in which OneFormer also applies dropout."""
    torch.manual_seed(0)
    with torch.no_grad():
        output = model.eval()(**{name: value for name, value in inputs.items() if name not in TARGETS})
    return [value for value in output.to_tuple() if isinstance(value, torch.Tensor) and value.ndim]


def stage_by_stage(encoder: ClusTRModel, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for stage in encoder.stages:
        pixel_values = stage(pixel_values)[0]
        maps.append(pixel_values)
    return maps


@pytest.mark.parametrize("name", COMPOSITES)
def test_composite_trains_and_reloads(name, tmp_path):
    torch.manual_seed(0)
    model, inputs = make_composite(name)
    output = model.train()(**inputs)
    loss = output.get("loss")
    if loss is None:  # some have no loss
        tensors = [value for value in output.to_tuple() if isinstance(value, torch.Tensor) and value.requires_grad]
        loss = sum(value.square().mean() for value in tensors)
    loss.backward()
    (encoder,) = (module for module in model.modules() if isinstance(module, ClusTRModel))
    last = len(STAGES) if not isinstance(encoder, ClusTRBackbone) else max(encoder.out_indices)
    without = [place for place, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert [place for place in without if int(place.split(".")[1]) < last] == []

    before = outputs_of(model, inputs)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs_of(type(model).from_pretrained(tmp_path), inputs), before)


@pytest.mark.parametrize("name", ["DPT-hybrid", "Detr", "UperNet", "Cohere2Vision"])
def test_maps_are_the_stages_own_after_a_composite_has_recorded(name):
    """transformers installs recording hooks in the backbone again when the surrounding model records."""
    model, inputs = make_composite(name)
    inputs = {label: value for label, value in inputs.items() if label not in TARGETS}
    (encoder,) = (module for module in model.eval().modules() if isinstance(module, ClusTRModel))
    with torch.no_grad():
        for _ in range(2):
            model(**inputs, output_hidden_states=True)
        expected = stage_by_stage(encoder, inputs["pixel_values"])
        if isinstance(encoder, ClusTRBackbone):
            maps = encoder(inputs["pixel_values"]).feature_maps
            torch.testing.assert_close(list(maps), [expected[index - 1] for index in encoder.out_indices])
        states = encoder(inputs["pixel_values"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(list(states[1:]), expected)


def test_encoder_decoder_generates():
    """A caption depends on the tokens of all pixels: the decoder sees the tokens of the map in row-major order."""
    model, inputs = make_composite("VisionEncoderDecoder-bert")
    pixel_values = inputs["pixel_values"]
    ids = model.eval().generate(pixel_values, max_length=6, min_length=6, do_sample=False)
    assert ids.shape == (2, 6)
    with torch.no_grad():
        tokens = model.encoder(pixel_values).last_hidden_state
        last_map = stage_by_stage(model.encoder, pixel_values)[-1]
    assert tokens.shape == (2, 2 * 3, 64)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(tokens[:, 3 * row + column], last_map[:, :, row, column])


def test_encoder_decoder_fails_on_a_map():
    """A map instead of tokens raises an error."""
    config = VisionEncoderDecoderConfig(encoder=encoder_config(), decoder=DECODERS["bert"]())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        VisionEncoderDecoderModel(config)(pixel_values=images(), decoder_input_ids=text_ids())


def test_heads_do_not_depend_on_the_layout_of_the_last_hidden_state():
    settings = {"num_labels": 3, "deconv_hidden_sizes": [8, 8, 8]}
    torch.manual_seed(0)
    model = ClusTRForPoseEstimation(encoder_config(**settings)).eval()
    flat = ClusTRForPoseEstimation(encoder_config(**settings, flatten_last_hidden_state=True)).eval()
    flat.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(flat(images()).heatmaps, model(images()).heatmaps)
        assert flat.clustr(images()).last_hidden_state.shape == (2, 6, 64)


def test_dual_encoder_of_saved_parts(tmp_path):
    """`from_vision_text_pretrained` accepts a checkpoint of any class; image features are those of the checkpoint."""
    torch.manual_seed(0)
    encoder = ClusTRModel(encoder_config()).eval()
    encoder.save_pretrained(tmp_path / "vision")
    BertModel(bert_config()).save_pretrained(tmp_path / "text")
    model = VisionTextDualEncoderModel.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text").eval()
    with torch.no_grad():
        features = model.get_image_features(images()).pooler_output
        torch.testing.assert_close(features, model.visual_projection(encoder(images()).pooler_output))


def limited(prefix: str, suffix: str = "ForDepthEstimation", **settings):
    """A model of transformers that requires something else than maps from its backbone."""
    config = getattr(transformers, f"{prefix}Config")(backbone_config=backbone_config(), **settings)
    return getattr(transformers, prefix + suffix)(config)(images())


def llava():
    config = transformers.LlavaConfig(
        vision_config=encoder_config(), text_config=language_config(LlamaConfig), image_token_index=IMAGE_TOKEN
    )
    transformers.LlavaForConditionalGeneration(config)(pixel_values=images(64, 64), input_ids=text_ids(IMAGE_TOKEN))


DEPTH = {"neck_hidden_sizes": [16, 16, 16, 16], "fusion_hidden_size": 16}
LIMITS = {
    "VitPose": (lambda: limited("VitPose", "ForPoseEstimation"), ValueError, "image_size"),
    "DPT": (lambda: limited("DPT", **DEPTH), AttributeError, "patch_size"),
    "DepthAnything": (lambda: limited("DepthAnything", reassemble_hidden_size=64, **DEPTH), ValueError, "unpack"),
    "ZoeDepth": (lambda: limited("ZoeDepth", **DEPTH), ValueError, "patch_size"),
    "LLaVA": (llava, RuntimeError, "shapes|dimension"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_does_not_work_raises(name):
    """If a limitation is gone, move the model to the other table of docs/composites.md."""
    call, error, message = LIMITS[name]
    with pytest.raises(error, match=message):
        call()


REMOTE = """
import sys, torch
from transformers import (
    AutoBackbone, AutoConfig, AutoModel, BertConfig, BertModel, UperNetConfig, UperNetForSemanticSegmentation,
    VisionEncoderDecoderConfig, VisionEncoderDecoderModel, VisionTextDualEncoderModel,
)
folder, trust = sys.argv[1], {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, out_features=["stage1", "stage2", "stage3", "stage4"], **trust)
AutoConfig.register(config.model_type, type(config))
image = torch.rand(1, 3, 64, 64)
sizes = dict(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)

def check_reloads(model, **inputs):
    model.eval().save_pretrained(sys.argv[2])
    again = type(model).from_pretrained(sys.argv[2]).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs)[0], model(**inputs)[0])

AutoBackbone.from_config(config, **trust)  # registers the class
settings = dict(hidden_size=16, auxiliary_in_channels=32, auxiliary_channels=16)
check_reloads(UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, **settings)), pixel_values=image)

encoder = AutoModel.from_pretrained(folder, **trust)
text = BertModel(BertConfig(**sizes))
dual = VisionTextDualEncoderModel(vision_model=encoder, text_model=text)
check_reloads(dual, pixel_values=image, input_ids=torch.arange(5)[None])

config.flatten_last_hidden_state = True
decoder = BertConfig(is_decoder=True, add_cross_attention=True, **sizes)
captions = VisionEncoderDecoderModel(VisionEncoderDecoderConfig(encoder=config, decoder=decoder))
check_reloads(captions, pixel_values=image, decoder_input_ids=torch.arange(5)[None])
print("reloaded")
"""


def test_composites_of_remote_code(run_without_package, tmp_path):
    """As described in docs/composites.md: `AutoConfig.register`, and classes that are loaded once."""
    ClusTRModel(encoder_config()).save_pretrained(tmp_path / "encoder")
    assert run_without_package(REMOTE, tmp_path / "encoder", tmp_path / "composite").endswith("reloaded\n")
