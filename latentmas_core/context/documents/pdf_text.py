"""The text of a PDF's pages, by pypdf, whose own limits bound what a stream unpacks to."""

import io
import logging

from latentmas_core.context.documents.document import too_large
from latentmas_core.errors import DocumentError

# pypdf tells of each oddity of a file that it can read all the same.
logging.getLogger("pypdf").setLevel(logging.ERROR)


def pdf_pages(content: bytes, name: str, *, max_pages: int, max_chars: int) -> list[str]:
    """The text of each page; empty for one that is a picture.

    Raises DocumentError for a file that is encrypted or broken, or has too many pages or too much
    text.
    """
    from pypdf import PdfReader  # imported here: it is slow to import, and most have no PDF
    from pypdf.errors import DependencyError

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted:
            raise _encrypted(name)
        if len(reader.pages) > max_pages:
            raise too_large(name, f"{len(reader.pages)} pages", f"max_pages ({max_pages})")
        pages: list[str] = []
        for page in reader.pages:
            # A broken font may map to half a surrogate pair, which no tokenizer can read.
            pages.append(page.extract_text().encode(errors="replace").decode())
            if sum(map(len, pages)) > max_chars:
                raise too_large(name, "more text", f"max_chars ({max_chars})")
    except DocumentError:
        raise
    except DependencyError:  # of a cipher
        raise _encrypted(name) from None
    except Exception as error:
        # Whatever a broken file makes pypdf stumble over: KeyError, TypeError, RecursionError ...
        raise DocumentError(
            f"document {name!r} is no PDF that can be read ({type(error).__name__}). Save it anew, "
            "or as text.",
            param="documents",
        ) from error
    return pages


def _encrypted(name: str) -> DocumentError:
    return DocumentError(
        f"document {name!r} is encrypted. Save it without a password.", param="documents"
    )
