"""A bucket of Google's on this machine: what a run needs of one, over HTTP.

    with bucket.served("faces") as environment:      # of processes that use gs://faces
        ...

Made of gcp-storage-emulator, which leaves out one header that TensorStore reads by.
"""

import contextlib
import socket

from gcp_storage_emulator.handlers import objects

_plain = objects.download


def _download(request, response, storage, *args, **kwargs):
    where = request.params["bucket_name"], request.params["object_id"]
    with contextlib.suppress(objects.NotFound):  # then `_plain` says so
        response["x-goog-generation"] = storage.get_file_obj(*where)["generation"]
    _plain(request, response, storage, *args, **kwargs)


objects.download = _download

from gcp_storage_emulator import server  # noqa: E402 - it lists the handlers there are


@contextlib.contextmanager
def served(name):
    """Serve an empty bucket; yield the environment variables that lead there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    one = server.create_server("127.0.0.1", port, in_memory=True, default_bucket=name)
    one.start()
    url = f"http://127.0.0.1:{port}"
    try:
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # of the readers of ArrayRecord
            "TENSORSTORE_GCS_HTTP_URL": url,
            "EPATH_USE_TF": "false",  # gcsfs can be told of another host
            # Nobody is asked for credentials, which there are none of.
            "NO_GCE_CHECK": "true",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        }
    finally:
        one.stop()
