"""What bash and zsh run to complete a command line: Typer's scripts, but no space after a word that goes on.

A folder (`runs/`), a key with keys below it (`net.model.`) and a key that wants a value (`trainer.max_epoch=`) go on.
"""

from __future__ import annotations

BASH = r"""
%(complete_func)s() {
    local IFS=$'\n'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" \
                   COMP_CWORD=$COMP_CWORD \
                   %(autocomplete_var)s=complete_bash $1 ) )
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/.=] ]]; then
        compopt -o nospace
    fi
    return 0
}

complete -o default -F %(complete_func)s %(prog_name)s
"""

ZSH = r"""
#compdef %(prog_name)s

%(complete_func)s() {
  if (( CURRENT == 2 )); then
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" %(autocomplete_var)s=complete_zsh %(prog_name)s)
    return
  fi
  local -a offered going_on whole
  offered=("${(@f)$(env COMP_WORDS="${(F)words[1,$CURRENT]}" COMP_CWORD=$((CURRENT - 1)) \
    %(autocomplete_var)s=complete_bash %(prog_name)s)}")
  going_on=(${(M)offered:#*[/.=]})
  whole=(${offered:#*[/.=]})
  if (( ${#going_on} + ${#whole} == 0 )); then
    _files
    return
  fi
  (( ${#going_on} )) && compadd -S '' -- $going_on
  (( ${#whole} )) && compadd -- $whole
}

compdef %(complete_func)s %(prog_name)s
"""


def use_own_scripts() -> None:
    """Make `--install-completion` and `--show-completion` give these; another Typer may keep its own."""
    try:
        from typer import _completion_classes, _completion_shared

        for shell, script in {"bash": BASH, "zsh": ZSH}.items():
            _completion_shared._completion_scripts[shell] = script
        _completion_classes.BashComplete.source_template = BASH
        _completion_classes.ZshComplete.source_template = ZSH
    except (ImportError, AttributeError):  # pragma: no cover - another Typer
        pass
