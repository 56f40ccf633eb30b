"""The names of --eval_metric and what --help says of each, for command lines that load no numpy; answer_metrics.py scores by them."""

METRIC_HELP = {
    "accuracy": "the row's own answer, after normalising",
    "choice": "the right option of a multiple-choice question",
    "f1": "mean F1 over the different answers (rare ones count as much as common ones)",
    "word_f1": "F1 of the words",
    "rouge_l": "ROUGE-L",
    "meta_action": "speed and path",
    "plan_hit": "trajectories that end within 2 m of the true end",
    "oia_f1": "F1_all of BDD-OIA's actions",
}
