"""What every stage shares, in the order in which a run meets it.

* stage.py               a line of the table of stages; the flags that a stage was given
* arguments.py           the command line -> those flags
* training_flags.py      which flags of TrainingArguments and of TRL are taken
* run.py                 a run from its words to a saved model
* training_arguments.py  flags -> TrainingArguments; the checkpoint of --resume
* build.py               model, data, sampler -> RunParts
* trainer.py             what every Trainer shares; gradients.py, heartbeat.py, progress.py and throughput.py look on
* saving.py              checkpoints; cursor.py: the place in the data; trust.py: shards of strangers
* faults.py              stops on request, losses that are not finite; watchdog.py: ranks that hang
"""
