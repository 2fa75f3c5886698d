"""Folders that outlive the pods: buckets by GKE's Cloud Storage FUSE driver, and claims of persistent volumes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.names import object_name
from specialize.errors import ConfigError

_BUCKET = re.compile(r"gs://([a-z0-9][-_.a-z0-9]{1,220}[a-z0-9])(?:/(.*?))?/?")


@dataclass(frozen=True)
class Mount:
    """A folder in every pod."""

    name: str
    """Of the volume."""
    path: str
    """In the container."""
    source: dict[str, Any]
    """What Kubernetes mounts."""

    @property
    def volume(self) -> dict[str, Any]:
        """For `volumes` of the pod."""
        return {"name": self.name, **self.source}

    @property
    def in_container(self) -> dict[str, Any]:
        """For `volumeMounts` of the container."""
        return {"name": self.name, "mountPath": self.path}

    @staticmethod
    def annotations(mounts: Sequence["Mount"]) -> dict[str, str]:
        """Of the pod: a bucket needs the driver's sidecar."""
        return {"gke-gcsfuse/volumes": "true"} if any("csi" in mount.source for mount in mounts) else {}


def mounts_of(words: Sequence[str]) -> list[Mount]:
    """Mounts as `--mount` has them: `gs://BUCKET[/FOLDER]=/PATH` and `pvc:CLAIM=/PATH`.

    Raises:
        ConfigError: one is of another form, or two have the same path.
    """
    made: list[Mount] = []
    for word in words:
        source, _, path = word.rpartition("=")
        bucket, claim = _BUCKET.fullmatch(source), source.removeprefix("pvc:")
        if not path.startswith("/") or not (bucket or source.startswith("pvc:")):
            raise ConfigError(
                f"--mount {word}: write gs://BUCKET[/FOLDER]=/PATH or pvc:CLAIM=/PATH. Names of buckets have small "
                "letters, digits, dots, hyphens and underscores."
            )
        if path in (mount.path for mount in made):
            raise ConfigError(f"--mount {word}: {path} is mounted twice. Choose another path.")
        if bucket:
            options = "implicit-dirs" + (f",only-dir={bucket[2]}" if bucket[2] else "")
            attributes = {"bucketName": bucket[1], "mountOptions": options}
            what = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
        else:
            what = {"persistentVolumeClaim": {"claimName": object_name("--mount", claim)}}
        made.append(Mount(f"mount-{len(made)}", path, what))
    return made
