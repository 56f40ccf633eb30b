"""Plain language models (Llama, Qwen, Mistral and kin): a family without a picture side, for text rows and as judges."""

from drive_vlm.models.family import FamilySpec, llm_linears

FAMILY = FamilySpec(
    name="language",
    parts={"language_model": ("model", "lm_head")},
    lora_targets=llm_linears(""),
    # Their configs say truly whether the head is tied.
    own_head=False,
)
