"""Rows to batches.

Once, before training (`stages/engine/build.py`):

1. sources.py     `open_sources(["train.jsonl", "meta.json"])` -> a `Source` a file. jsonl.py indexes its lines on disk, so that a
                  row is read when it is needed and a million rows take no memory. columnar.py: Parquet, Arrow and folders;
                  dataset_info.py: LLaMA-Factory's file of them.
2. samples.py     row (dict) -> `Sample`: turns, paths of pictures or of a video, extra columns. forms.py knows the forms of the
                  field's tools, turns.py their messages. A row that cannot be used is a `BadRow` (an exception) with file:line,
                  reason and way out; `turns.one_row` makes one of any error between here and the tensors.
3. table.py       `build_table` measures every row without decoding a picture -> `RowTable`: which row of which file
                  `int64[N]`, its tokens `int32[N]`, and the bad rows for data_audit.json.
4. order.py       lengths `int[N]`, seed, epoch -> *sequences* of row numbers: `(3,)`, or packed `(3, 17)`; dealt to ranks and
                  micro-batches by `ShardedBatchSampler`.

For each sequence, in the loader's workers (`EncodedRows` in collate.py):

5. `dataset[(3, 17)]` -> [encoded row 3, encoded row 17]. The index is a tuple, since a sequence may be a pack. A row that cannot be
   decoded now stands in the list as a `BadRow` object: raised in a worker it would reach the trainer as another exception
   without its parts, and only the trainer knows whether to stop or to count it.
6. chat.py        turns -> text of the model's own chat template, and which characters the assistant says.
7. encoder.py     text -> `input_ids int64[T]`, `labels int64[T]` (IGNORE_INDEX but for the assistant's words), each image token
                  replaced by the tokens of its picture.
8. vision.py      pictures, frames -> RGB, upright; the family's `VisionAdapter` makes its tensors of them (InternVL: `pixel_values
                  uint8[P, 3, H, W]`, which the model normalises: models/pixels.py). With --feature_cache: `vision_features float[P, L, Dv]` from caches/, no file opened.

For each micro-batch:

9. collate.py     sequences -> `input_ids`, `labels`, `attention_mask` or (packed) `position_ids`, each `int64[B, T]`, the vision
                  tensors of all rows one after the other, `sample_ids list[str]`, `num_tokens` and `bad_rows`.

preference/ does 5 to 9 for pairs (two encoded rows that share their pictures). caches/ holds what is computed once: features of a
frozen tower, log-probabilities of a frozen reference. predictions.py is the way back: answers as rows that evaluators read.
videos.py finds videos below a folder, for commands that ask about videos without a data file.
"""
