"""``DELETE /v1/documents/{id}``: a document is forgotten."""

# Annotations must not be strings here: the types of a route's parameters depend on arguments of its router.

from collections.abc import Callable

from fastapi import APIRouter

from services.query.auth.scopes import requires
from services.query.errors import Failure
from services.query.routes.identifiers import PathId

# Erases the document of an id, or raises a BackendError. May block.
Erase = Callable[[str], object]


def router(erase: Erase) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.delete(
        "/v1/documents/{id:document}",
        status_code=204,
        summary="Erase a document",
        dependencies=[requires("admin")],
        responses={
            422: {"model": Failure, "description": "The identifier is too long."},
            503: {"model": Failure, "description": "Kafka or the store does not answer; ask again."},
        },
    )
    def delete_document(id: PathId) -> None:
        """Removes its result, mentions, cached segments and the feedback that names it; also what is still in flight.

        A version that is sent later is processed as new. A document that is not there is erased as well.
        """
        erase(id)

    return routes
