"""Tiny models of many architectures, and a batch that each of them takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor

TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {"intermediate_size": 48}
POSITIONS = {"max_position_embeddings": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
#: Encoders' usual sizes.
ENCODER = TEXT | WIDE | POSITIONS | NO_DROPOUT
#: Decoders' usual sizes.
DECODER = TEXT | WIDE | POSITIONS | {"pad_token_id": 0}
GROUPED = DECODER | {"num_key_value_heads": 1}
BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
IMAGE = WIDE | NO_DROPOUT | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "num_labels": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model class, its configuration class and sizes, and what its batches hold."""

    model: str
    config: str
    sizes: dict
    batch: Callable[[], dict[str, Tensor]]

    def make(self) -> hf.PreTrainedModel:
        """The same model at every call, every bias other than zero, without dropout."""
        torch.manual_seed(0)
        model = getattr(hf, self.model)(getattr(hf, self.config)(**self.sizes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        return model.eval()


def tokens(length: int = 10) -> Tensor:
    return torch.arange(6, 6 + 2 * length).reshape(2, length) % 58 + 6


def text(labels: Tensor | None = None) -> dict[str, Tensor]:
    batch = {"input_ids": tokens(), "attention_mask": torch.ones(2, 10, dtype=torch.int64)}
    return batch if labels is None else batch | {"labels": labels}


def classes() -> dict[str, Tensor]:
    return text(torch.tensor([0, 1]))


def numbers() -> dict[str, Tensor]:
    return text(torch.tensor([0.5, -1.0]))


def several() -> dict[str, Tensor]:
    return text(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))


def next_tokens() -> dict[str, Tensor]:
    return text(tokens())


def tags() -> dict[str, Tensor]:
    return text(tokens() % 3)


def spans() -> dict[str, Tensor]:
    return text() | {
        "start_positions": torch.tensor([1, 4]),
        "end_positions": torch.tensor([3, 4]),
    }


def vectors() -> dict[str, Tensor]:
    return text(torch.ones(2, 32))


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 2])}


def large_images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 2])}


def speech() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 8, 20), "labels": tokens(5)}


def waves() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 400), "labels": torch.tensor([0, 1])}


def pairs() -> dict[str, Tensor]:
    return text() | {"pixel_values": torch.randn(2, 3, 8, 8)}


ARCHITECTURES = {
    "BERT": Architecture("BertForSequenceClassification", "BertConfig", ENCODER, classes),
    "BERT, several labels": Architecture(
        "BertForSequenceClassification",
        "BertConfig",
        ENCODER | {"num_labels": 3, "problem_type": "multi_label_classification"},
        several,
    ),
    "BERT, tags": Architecture(
        "BertForTokenClassification", "BertConfig", ENCODER | {"num_labels": 3}, tags
    ),
    "BERT, answers": Architecture("BertForQuestionAnswering", "BertConfig", ENCODER, spans),
    "BERT, masked": Architecture("BertForMaskedLM", "BertConfig", ENCODER, next_tokens),
    "BERT, embedding": Architecture("BertModel", "BertConfig", ENCODER, vectors),
    "RoBERTa, a number": Architecture(
        "RobertaForSequenceClassification", "RobertaConfig", ENCODER | {"num_labels": 1}, numbers
    ),
    "DistilBERT": Architecture(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {
            "vocab_size": 64,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 48,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
            "max_position_embeddings": 32,
        },
        classes,
    ),
    "ALBERT": Architecture(
        "AlbertForSequenceClassification",
        "AlbertConfig",
        ENCODER | {"embedding_size": 16, "classifier_dropout_prob": 0.0},
        classes,
    ),
    "ELECTRA": Architecture(
        "ElectraForSequenceClassification",
        "ElectraConfig",
        ENCODER | {"embedding_size": 16},
        classes,
    ),
    "DeBERTa-v2": Architecture(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        classes,
    ),
    "MPNet": Architecture("MPNetForSequenceClassification", "MPNetConfig", ENCODER, classes),
    "ModernBERT": Architecture(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        TEXT | WIDE | POSITIONS | {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3},
        classes,
    ),
    "GPT-2": Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 32,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        next_tokens,
    ),
    "GPT-NeoX": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", DECODER, next_tokens),
    "OPT": Architecture(
        "OPTForCausalLM",
        "OPTConfig",
        TEXT
        | POSITIONS
        | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "pad_token_id": 0},
        next_tokens,
    ),
    "BLOOM": Architecture(
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2},
        next_tokens,
    ),
    "LLaMA": Architecture("LlamaForCausalLM", "LlamaConfig", DECODER, next_tokens),
    "LLaMA, classes": Architecture(
        "LlamaForSequenceClassification", "LlamaConfig", DECODER, classes
    ),
    "Mistral": Architecture("MistralForCausalLM", "MistralConfig", GROUPED, next_tokens),
    "Qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", GROUPED, next_tokens),
    "Qwen3": Architecture(
        "Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"head_dim": 16}, next_tokens
    ),
    "Gemma 2": Architecture(
        "Gemma2ForCausalLM", "Gemma2Config", GROUPED | {"head_dim": 16}, next_tokens
    ),
    "Phi-3": Architecture("Phi3ForCausalLM", "Phi3Config", GROUPED, next_tokens),
    "Mixtral": Architecture(
        "MixtralForCausalLM",
        "MixtralConfig",
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
        next_tokens,
    ),
    "T5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 64,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 2,
            "dropout_rate": 0.0,
            "decoder_start_token_id": 0,
        },
        next_tokens,
    ),
    "BART": Architecture("BartForConditionalGeneration", "BartConfig", BART, next_tokens),
    "BART, classes": Architecture(
        "BartForSequenceClassification",
        "BartConfig",
        BART | {"num_labels": 2, "eos_token_id": 1},
        lambda: classes() | {"input_ids": tokens().index_fill(1, torch.tensor([9]), 1)},
    ),
    "ViT": Architecture("ViTForImageClassification", "ViTConfig", IMAGE, images),
    "Swin": Architecture(
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "num_labels": 3,
            "drop_path_rate": 0.0,
        },
        large_images,
    ),
    "CLIP": Architecture(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": TEXT | WIDE | POSITIONS | {"eos_token_id": 2},
            "vision_config": {k: v for k, v in IMAGE.items() if k != "num_labels"},
            "projection_dim": 16,
        },
        pairs,
    ),
    "Whisper": Architecture(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **BART,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
        },
        speech,
    ),
    "Wav2Vec2": Architecture(
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "conv_dim": [8, 8],
            "conv_stride": [5, 2],
            "conv_kernel": [10, 3],
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 16,
            "num_labels": 2,
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
            "hidden_dropout": 0.0,
            "activation_dropout": 0.0,
            "attention_dropout": 0.0,
            "feat_proj_dropout": 0.0,
            "final_dropout": 0.0,
        },
        waves,
    ),
}
