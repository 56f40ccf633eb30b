"""`generate --json_schema FILE`: a JSON schema that answers are held to, and which of them follow it."""

import json
from typing import Any

_INSTALL = "pip install drive-vlm[json]"


class JsonSchema:
    """The schema of a file.

    Raises ValueError, naming the file, where it is no JSON schema and where jsonschema is missing.

    Attributes:
        schema: its content.
    """

    def __init__(self, path: str) -> None:
        try:
            import jsonschema
            from referencing import Registry
        except ImportError as error:
            raise ValueError(
                f"--json_schema: answers are checked with jsonschema, which is missing: {_INSTALL}"
            ) from error
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                self.schema: Any = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"--json_schema {path}: cannot be read as JSON ({error})") from error
        if not isinstance(self.schema, dict):
            raise ValueError(f"--json_schema {path}: a schema is a JSON object, this is a {type(self.schema).__name__}")
        kind = jsonschema.validators.validator_for(self.schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            where = "/".join(map(str, error.path)) or "the whole"
            raise ValueError(f"--json_schema {path}: no JSON schema: {where}: {error.message[:300]}") from error
        # An empty registry: what a $ref names on the network is not fetched.
        self._validator = kind(self.schema, registry=Registry())

    def grammar(self) -> str:
        """The grammar of llguidance. Raises ValueError where it is missing, or cannot hold an answer to this schema.

        Without blanks between the parts: with them a model may write blanks without end.
        """
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise ValueError(
                f"--json_schema holds answers to it with llguidance, which is missing: {_INSTALL}; or --json_free, which only "
                "counts the answers that follow it"
            ) from error
        grammar = LLMatcher.grammar_from_json_schema(self.schema, overrides={"whitespace_flexible": False})
        failed, words = LLMatcher.validate_grammar_with_warnings(grammar)
        if failed:
            raise ValueError(
                f"--json_schema {self.path}: llguidance cannot hold an answer to it ({' '.join(words[0].split())[:300]}); change "
                "the schema, or give --json_free, which only counts"
            )
        return grammar

    def fits(self, text: str) -> bool:
        """Whether the whole text is JSON that follows the schema. Raises ValueError for a $ref to what is not in the file."""
        from referencing.exceptions import Unresolvable

        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        try:
            return self._validator.is_valid(value)
        except Unresolvable as error:
            raise ValueError(f"--json_schema {self.path}: {error}; write it into the file") from error


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
