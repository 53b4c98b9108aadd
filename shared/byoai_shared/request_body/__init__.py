"""What a request's body says about who is to answer: its model, and the names of its fields.

One strict reader for JSON objects and multipart forms, used by the gateway and by the agent. It
does no I/O. Two programs read every body: ours, which decides by the model, and the provider's,
which acts on it. A body that those two could read in two ways is refused with the reason, never
repaired: a model given twice or spelled in another way, a form that only a lenient reader
understands, a body in an encoding.

errors        why a body is refused
names         which spellings of a field's name a lenient reader takes for the same
media_types   Content-Type and Content-Disposition: a value and its parameters
json_object   the top level of a JSON object
form          multipart/form-data
reading       the entry: `read_json`, `read_upload`
"""
