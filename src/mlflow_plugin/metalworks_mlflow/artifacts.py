"""Artifacts that MLflow's server keeps in an object store, at nearly the store's own speed.

MLflow's client asks its server for signed addresses, and sends large files to the store and fetches files from there.
But it sends one file after the other, each over a connection of its own; it fetches in pieces of 10 kB, and unpacks a
file that was stored with a Content-Encoding, such as data.csv.gz. Everything else is MLflow's: which files go this way,
what it asks the server, and who may.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import urllib3  # MLflow needs it, too
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

FILES_AT_ONCE = 4
READ_BYTES = 1 << 20
ATTEMPTS = 3
SECONDS = 60.0
"""How long to wait for the store's next bytes."""


class Artifacts(MlflowArtifactsRepository):
    """Replaces what is slow in MLflow's own class. Versions of MLflow that lack a replaced method never call it."""

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Upload the files of a folder, several at once; raises the first error."""
        top = Path(local_dir).resolve()
        pool = ThreadPoolExecutor(FILES_AT_ONCE)
        uploads = []
        try:
            for folder, _, names in os.walk(top):
                below = Path(folder).relative_to(top).as_posix()
                place = "/".join(part for part in (artifact_path, below) if part and part != ".") or None
                uploads += [pool.submit(self.log_artifact, str(Path(folder) / name), place) for name in names]
            done, _ = wait(uploads, return_when=FIRST_EXCEPTION)
        finally:  # also when somebody interrupts the program
            pool.shutdown(cancel_futures=True)
        for upload in done:
            upload.result()

    @staticmethod
    def _upload_part(credential: Any, local_file: str, size: int, start_byte: int) -> Any:
        """Upload a part of a file over a connection that is kept for the next one."""
        from mlflow.entities.multipart_upload import MultipartUploadPart
        from mlflow.utils.file_utils import read_chunk
        from mlflow.utils.request_utils import augmented_raise_for_status, cloud_storage_http_request

        data = read_chunk(Path(local_file), size, start_byte)
        response = cloud_storage_http_request("put", credential.url, data=data, headers=credential.headers)
        augmented_raise_for_status(response)
        return MultipartUploadPart(credential.part_number, response.headers.get("ETag", ""), credential.url)

    def _multipart_download(
        self, presigned_response: Any, remote_file_path: str, local_path: str, file_size: int, chunk_size: int
    ) -> None:
        """Download a file as it is stored. MLflow itself fetches the chunks of a larger one in parallel."""
        if file_size > chunk_size:
            asked = (presigned_response, remote_file_path, local_path, file_size, chunk_size)
            super()._multipart_download(*asked)  # type: ignore[no-untyped-call]
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                fetch(presigned_response.url, presigned_response.headers, Path(local_path), file_size)
            except (OSError, urllib3.exceptions.HTTPError):
                if attempt == ATTEMPTS:
                    raise
            else:
                return


def fetch(url: str, headers: dict[str, str], file: Path, size: int) -> None:
    """Download the content of a URL without decoding it. Raises OSError or an error of urllib3."""
    from mlflow.utils.request_utils import augmented_raise_for_status, cloud_storage_http_request

    with cloud_storage_http_request("get", url, headers=headers, stream=True, timeout=SECONDS) as response:
        augmented_raise_for_status(response)
        with file.open("wb") as target:
            shutil.copyfileobj(response.raw, target, READ_BYTES)
            got = target.tell()
    if got != size:
        raise OSError(f"The object store sent {got} bytes of {size}")
