"""
transformers' own model, backbone, configuration and image processor tests over our classes.

Every override and skip says why; they are of the kind that PVTv2's and Swin's own test files have.
"""

import unittest

import torch
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.testing_utils import torch_device

from clustr_hf import (
    ClusTRBackbone,
    ClusTRConfig,
    ClusTRDetectionImageProcessor,
    ClusTRForImageClassification,
    ClusTRForInstanceSegmentation,
    ClusTRForObjectDetection,
    ClusTRForPoseEstimation,
    ClusTRForSemanticSegmentation,
    ClusTRImageProcessor,
    ClusTRModel,
    ClusTRPoseImageProcessor,
)


# The mixins know which classes take labels from these static tables, where registered classes are not listed.
MODEL_MAPPING_NAMES["clustr"] = "ClusTRModel"
MODEL_FOR_BACKBONE_MAPPING_NAMES["clustr"] = "ClusTRBackbone"
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["clustr"] = "ClusTRForImageClassification"
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["clustr"] = "ClusTRForSemanticSegmentation"
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["clustr"] = "ClusTRForObjectDetection"


class ClusTRModelTester:
    """Small models and inputs in the form that the mixins ask for."""

    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.image_size = 64
        self.num_labels = 3
        self.is_training = True
        # Stage 1, whose attention the mixins look at: 16 x 16 tokens, 4 and 16 clusters.
        self.num_hidden_layers = 5  # blocks, each of which records one attention map
        self.num_attention_heads = 1
        self.seq_length = 256
        self.key_length = 4 + 16

    def get_config(self):
        return ClusTRConfig(
            hidden_sizes=[16, 32, 32, 64],
            depths=[1, 1, 2, 1],
            num_attention_heads=[1, 2, 2, 4],
            mlp_ratios=[2, 2, 2, 2],
            num_labels=self.num_labels,
            fpn_hidden_size=16,
            decoder_hidden_size=16,
            upernet_hidden_size=16,
            auxiliary_hidden_size=16,
            box_head_hidden_size=16,
            mask_head_hidden_size=16,
            deconv_hidden_sizes=[16, 16, 16],
            detections_per_image=5,
        )

    def prepare_config_and_inputs(self):
        pixel_values = floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        return self.get_config(), pixel_values, ids_tensor([self.batch_size], self.num_labels)

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class ClusTRModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        ClusTRModel,
        ClusTRForImageClassification,
        ClusTRForSemanticSegmentation,
        ClusTRForObjectDetection,
        ClusTRForInstanceSegmentation,
        ClusTRForPoseEstimation,
    )
    test_resize_embeddings = False

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # Override as in DETR's tests: the labels of detectors are dictionaries, those of pose estimators heat maps.
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class in (ClusTRForObjectDetection, ClusTRForInstanceSegmentation):
            side = self.model_tester.image_size
            label = {
                "class_labels": torch.ones(2, dtype=torch.long, device=torch_device),
                "boxes": torch.full((2, 4), 0.4, device=torch_device),
                "masks": torch.ones(2, side, side, device=torch_device),
            }
            inputs["labels"] = [label] * self.model_tester.batch_size
        if return_labels and model_class is ClusTRForPoseEstimation:  # heat maps, at a quarter of the image
            side = self.model_tester.image_size // 4
            shape = (self.model_tester.batch_size, self.model_tester.num_labels, side, side)
            inputs["labels"] = torch.full(shape, 0.5, device=torch_device)
        return inputs

    def setUp(self):
        self.model_tester = ClusTRModelTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=ClusTRConfig,
            has_text_modality=False,
            common_properties=["hidden_sizes", "num_attention_heads", "num_channels"],
            hidden_sizes=[16, 32, 64, 128],
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="Four stages have at least four blocks; the mixin allows two")
    def test_num_layers_is_small(self):
        pass

    @unittest.skip(reason="ClusTR has no text embeddings, so no inputs_embeds")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        # Override: the input embedding is a convolution, not nn.Embedding.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv2d)
            self.assertIsNone(model.get_output_embeddings())

    def test_hidden_states_output(self):
        # Override: hidden states are maps (B, C, h, w), the stem and then one a stage, not tokens of one resolution.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        expected = [(16, 16), (16, 16), (32, 8), (32, 4), (64, 2)]
        for model_class in self.all_model_classes:
            for by_argument in (True, False):
                config.output_hidden_states = not by_argument
                model = model_class(config).to(torch_device).eval()
                with torch.no_grad():
                    outputs = model(**inputs, **({"output_hidden_states": True} if by_argument else {}))
                shapes = [tuple(state.shape) for state in outputs.hidden_states]
                self.assertEqual(shapes, [(3, channels, side, side) for channels, side in expected])

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self):
        # One scale: the maps of several scales are put side by side after use, which is no part of the graph.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config.reduction_ratios = [[64], [16], [4], [1]]
        return config, inputs


class ClusTRBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (ClusTRBackbone,)
    config_class = ClusTRConfig

    def setUp(self):
        self.model_tester = ClusTRModelTester(self)


class ClusTRImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, num_labels=5, **kwargs)

    def _get_image_processing_classes(self):
        # Override: the mixin looks classes up in transformers' static table.
        return {"torchvision": ClusTRImageProcessor}

    def prepare_post_process_semantic_segmentation_inputs(self):
        # Override: `size` has no height and width.
        from transformers.modeling_outputs import SemanticSegmenterOutput

        logits = torch.randn(self.batch_size, self.num_labels, 6, 7)
        return {"outputs": SemanticSegmenterOutput(logits=logits)}, {"num_labels": 5, "height": 6, "width": 7}


class ClusTRImageProcessingTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = ClusTRImageProcessingTester


class ClusTRDetectionImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 18, "longest_edge": 30})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # Override: the mixin looks classes up in transformers' static table.
        return {"torchvision": ClusTRDetectionImageProcessor}


class ClusTRDetectionImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ClusTRDetectionImageProcessingTester

    @unittest.skip(reason="Its keyword arguments are those of Deformable DETR's processor; the mixin wants a new class")
    def test_valid_kwargs_set(self):
        pass


class ClusTRPoseImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 32, "width": 24})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # Override: the mixin looks classes up in transformers' static table.
        return {"torchvision": ClusTRPoseImageProcessor}


class ClusTRPoseImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ClusTRPoseImageProcessingTester
