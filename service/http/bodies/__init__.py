"""Request bodies: read, parsed and checked.

Each kind of body is described by a pydantic model (`service.http.schemas`). The kinds that come often, or that hold
thousands of entries, have a msgspec type too, which decodes several times as fast. The msgspec type accepts nothing
that the model would refuse. Whatever it does not accept goes through the model, which decides and names the wrong
fields. So there is one set of error messages, and only unusual or wrong bodies are parsed twice.
"""
