"""Training stages; each builds one transformers Trainer. A new stage is one file and one line here and in __main__."""

STAGES = {
    "sft": "drive_vlm.stages.sft:main",
    "grpo": "drive_vlm.stages.rl.grpo:main",
    "dpo": "drive_vlm.stages.preference.stage:main_dpo",
    "spin": "drive_vlm.stages.preference.stage:main_spin",
}
