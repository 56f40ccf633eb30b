"""Rows to batches, and on to the loss.

Once, before training (`stages/engine/build.py`):

1. sources.py     `open_sources(["train.jsonl", "meta.json"])` -> a `Source` a file. jsonl.py indexes its lines on disk, so that a
                  row is read when it is needed and a million rows take no memory. columnar.py: Parquet, Arrow and folders;
                  dataset_info.py: LLaMA-Factory's file of them.
2. samples.py     row (dict) -> `Sample`: turns, paths of pictures or of a video, extra columns. forms.py knows the forms of the
                  field's tools, turns.py their messages. A row that cannot be used is a `BadRow` (an exception) with file:line,
                  reason and way out; `turns.one_row` makes one of any error between here and the tensors.
3. table.py       `build_table` measures every row without decoding a picture -> `RowTable`: which row of which file
                  `int64[N]`, its tokens `int32[N]`, and the bad rows for data_audit.json. How a picture is cut follows from the size
                  in its header (`Encoder.layouts_of`, the family's `Tiling.layout`).
4. order.py       lengths `int[N]`, seed, epoch -> *sequences* of row numbers: `(3,)`, or packed `(3, 17)` (`pack`, `EpochOrder`);
                  dealt to ranks and micro-batches by `ShardedBatchSampler`.

For each sequence, in the loader's workers (`EncodedRows` in collate.py):

5. `dataset[(3, 17)]` -> [encoded row 3, encoded row 17]. The index is a tuple, since a sequence may be a pack. A row that cannot be
   decoded now stands in the list as a `BadRow` object: raised in a worker it would reach the trainer as another exception
   without its parts, and only the trainer knows whether to stop or to count it.
   `Encoder.encode` does the next three.
6. vision.py      `load_vision`: pictures, frames -> RGB, upright; the family's `VisionAdapter.load_pixels` makes its tensors of them
                  (InternVL: `pixel_values uint8[P, 3, H, W]`) and says how it cut them, which must be what step 3 found. With
                  --feature_cache: `vision_features float[P, L, Dv]` from caches/, no file opened.
7. chat.py        `render`: turns -> text of the model's own chat template, and which characters the assistant says.
8. encoder.py     `tokens`: text -> `input_ids int64[T]`, `labels int64[T]` (IGNORE_INDEX but for the assistant's words), each image
                  token replaced by the tokens of its picture.

For each micro-batch:

9. collate.py     sequences -> `input_ids`, `labels`, `attention_mask` or (packed) `position_ids`, each `int64[B, T]`, the vision
                  tensors of all rows one after the other, `sample_ids list[str]`, `num_tokens` and `bad_rows`.

For each step, in the process that trains (`DriveTrainerMixin` in stages/engine/trainer.py on top of transformers' Trainer):

10. `get_batch_samples` takes the micro-batches of a step, `_get_num_items_in_batch` counts their labels over all ranks.
11. `training_step`: `begin_batch` takes ids and bad rows out, then `compute_loss` calls `model(**batch, num_items_in_batch=...)`.
12. models/training_forward.py has patched four methods: forward of the model (a call with `labels` returns the loss), of its
    body (a dummy tile for a batch without pictures) and of its head (labelled positions only, in chunks), and the body's check of
    picture tokens. models/pixels.py wraps `get_image_features`, which normalises uint8 pixels on the device; row_attention.py takes
    the rows of a pack one at a time.
13. The loss is the sum over this rank's labels divided by those of all ranks, times the number of ranks, since their gradients are
    averaged (Trainer.compute_loss multiplies).

preference/ does 5 to 9 for pairs (two encoded rows that share their pictures). caches/ holds what is computed once: features of a
frozen tower, log-probabilities of a frozen reference. predictions.py is the way back: answers as rows that evaluators read.
videos.py finds videos below a folder, for commands that ask about videos without a data file.
"""
