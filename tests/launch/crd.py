"""The schema of a custom resource as JSON Schema, as strict as an API server that refuses what it does not know."""

from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jsonschema.protocols import Validator

FROM_KUBERNETES = {"apiVersion", "kind", "metadata"}
"""Fields of every object that the CRD leaves to Kubernetes."""


def validator_of(crd: Path, version: str) -> Validator:
    """A validator of the resource's objects, of one of its versions."""
    resource = yaml.load(crd.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in resource["spec"]["versions"] if each["name"] == version]
    made = _strict(schema)
    made["properties"]["metadata"] = OBJECT_META
    made["properties"]["kind"] = {"const": resource["spec"]["names"]["kind"]}
    made["properties"]["apiVersion"] = {"const": f"{resource['spec']['group']}/{version}"}
    made["required"] = sorted(FROM_KUBERNETES)
    return jsonschema.Draft202012Validator(made)


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
OBJECT_META: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "namespace": {"type": "string"},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
    "required": ["name"],
    "additionalProperties": False,
}
"""What the JobSet files use of Kubernetes' ObjectMeta, which the CRD does not describe."""


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields forbidden, and integers or texts where Kubernetes takes both."""
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    # Of formats, int32 and int64 are ranges that JSON Schema leaves to others.
    made.pop("format", None)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        made["properties"] = {name: _strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        made["items"] = _strict(schema["items"])
    return made
