"""The family `minicpmv`: registered with transformers' Auto classes when first asked for."""


def register() -> None:
    """Let AutoConfig and AutoModelForImageTextToText know the classes and the published names; again it does nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    from drive_vlm.models.minicpmv.configuration import MiniCPMVConfig
    from drive_vlm.models.minicpmv.modeling import MiniCPMVForConditionalGeneration, MiniCPMVModel, renamings

    AutoConfig.register(MiniCPMVConfig.model_type, MiniCPMVConfig, exist_ok=True)
    AutoModel.register(MiniCPMVConfig, MiniCPMVModel, exist_ok=True)
    AutoModelForImageTextToText.register(MiniCPMVConfig, MiniCPMVForConditionalGeneration, exist_ok=True)
    register_checkpoint_conversion_mapping(MiniCPMVForConditionalGeneration.__name__, renamings(), overwrite=True)
