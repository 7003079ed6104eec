"""Multipart forms with one file, which goes to disk as it comes."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from stille.server.batches.files import FileStore
from stille.server.errors import ApiError

_MAX_FIELD_BYTES = 1024
_MAX_HEADER_BYTES = 4096
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


class Upload:
    """A form that is being received; as a context manager it removes the part that nobody has taken.

    Args:
        content_type: the request's header.
        files: where the file's content goes.

    Attributes:
        part: what of it has come.
        fields: the form's other fields.
        filename: what the client calls the file; None until it has come.

    Raises:
        ApiError: the request has no multipart form.
    """

    def __init__(self, content_type: str, files: FileStore):
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            message = "The body must be a form, sent with Content-Type: multipart/form-data and its boundary."
            raise ApiError(400, message, code="invalid_form")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.part = files.new_part()
        self._files = files
        self._out: BinaryIO | None = None
        self._header_name, self._header_value = b"", b""
        self._disposition = b""
        self._name: str | None = None  # of the field that is being received; None: it is the file
        self._value = b""
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_header_name,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_end,
                    "on_end": self._on_form_end,
                },
            )
        except FormParserError as error:
            raise _unreadable(error) from error

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._out is not None:
            self._out.close()
        self.part.unlink(missing_ok=True)

    async def receive(self, chunks: AsyncIterator[bytes]) -> None:
        """Read the form to its end; afterwards the file is closed and complete.

        Raises:
            ApiError: it is not a form that an upload may have.
        """
        try:
            async for chunk in chunks:
                if chunk:
                    await asyncio.to_thread(self._parser.write, chunk)
        except FormParserError as error:
            raise _unreadable(error) from error
        if not self._complete:
            raise ApiError(400, "The form ends too early.", code="invalid_form")
        if self._out is None:
            raise ApiError(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
        await asyncio.to_thread(self._out.close)

    # Called by the parser, in a worker thread

    def _begin(self) -> None:
        self._disposition, self._name, self._value = b"", None, b""
        self._header_name, self._header_value = b"", b""

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._bound_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._bound_header()

    def _bound_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > _MAX_HEADER_BYTES:
            message = f"A part of the form has a header of more than {_MAX_HEADER_BYTES} bytes."
            raise ApiError(400, message, code="invalid_form")

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name, self._header_value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if name == "file":
            if filename is None:
                message = "Invalid value for 'file': it must be a part with a filename."
                raise ApiError(400, message, code="invalid_type", param="file")
            if self._out is not None:
                raise ApiError(400, "There may be one file.", code="invalid_form", param="file")
            self.filename = filename.decode("utf-8", "replace")[:255]
            self._out = self._files.create(self.part)
            return
        if name not in _FIELDS:
            raise ApiError(400, f"Unknown parameter: '{name[:100]}'.", code="unknown_parameter", param=name[:100])
        if name in self.fields:
            raise ApiError(400, f"'{name}' is there more than once.", code="invalid_form", param=name)
        self._name = name

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            assert self._out is not None  # _on_headers has opened it
            self._out.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            message = f"Invalid value for '{self._name}': it has more than {_MAX_FIELD_BYTES} bytes."
            raise ApiError(400, message, code="invalid_value", param=self._name)

    def _on_end(self) -> None:
        if self._name is not None:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _on_form_end(self) -> None:
        self._complete = True


def _unreadable(error: Exception) -> ApiError:
    return ApiError(400, f"The form cannot be read: {error}.", code="invalid_form")
