"""JSON bodies: read, parsed in one pass, and checked field by field.

Each kind of body is described by a pydantic model (`service.http.schemas`). For those that come by the thousand, or
hold thousands, there is a msgspec type too, several times as fast. It accepts nothing that the model would not;
whatever it does not accept goes through the model, which decides and names the fields. So there is one set of errors,
and no body is judged twice unless it is wrong.
"""
