"""Extension of griffe: fields `name: type = setting(default, help, ...)` of a settings class show default and help."""

import ast
from typing import Any, Set

import griffe


class Settings(griffe.Extension):
    """Replaces the call of `setting` by its default, and lists the fields with their help in the class's docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        call = attr.value
        if not isinstance(call, griffe.ExprCall) or str(call.function) != 'setting' or len(call.arguments) < 2:
            return
        default, help_text = call.arguments[:2]
        try:
            text = ast.literal_eval(str(help_text))
        except (ValueError, SyntaxError):  # an f-string
            text = str(help_text)
        attr.value = default
        attr.extra['settings']['help'] = text.replace('%%', '%')

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        self._document(pkg, {str(name) for name in pkg.exports or ()})

    def _document(self, module: griffe.Object, public: Set[str]) -> None:
        for member in module.members.values():
            if member.is_alias:
                continue
            if member.is_module:
                self._document(member, public)
            elif member.is_class and member.docstring:
                of_bases = {  # which have lists of their own
                    name for base in member.resolved_bases if base.name in public for name in base.all_members
                }
                lines = [
                    f'    {name} ({field.annotation}): {field.extra["settings"]["help"]}'
                    for name, field in member.all_members.items()
                    if 'help' in field.extra['settings'] and (name in member.members or name not in of_bases)
                ]
                if lines:
                    member.docstring.value += '\n\nAttributes:\n' + '\n'.join(lines)
