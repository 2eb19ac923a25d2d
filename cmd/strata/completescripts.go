package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"
)

// The scripts pass all words to completeCommand and evaluate nothing. Those of the CLI library are not used: they need
// the package bash-completion, evaluate the typed words, and split names at colons.

// bash splits words at "=" and ":" (COMP_WORDBREAKS): the script joins them again, and removes from the candidates the
// part that bash keeps on the line.
const bashCompletion = `# Completion of strata for bash: source <(strata completion bash)
_strata() {
  local line=${COMP_LINE:0:COMP_POINT} rest word found i
  local -a words=()
  for ((i = 0; i <= COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    rest=${line#"${line%%[![:space:]]*}"}
    ((i == COMP_CWORD)) && word=$rest
    if ((i > 0)) && [[ $rest == "$line" ]]; then
      words[${#words[@]}-1]+=$word
    else
      words+=("$word")
    fi
    line=${rest#"$word"}
  done
  local current=${words[${#words[@]}-1]} kept=
  for i in : =; do
    [[ $COMP_WORDBREAKS == *$i* && $current == *$i* ]] || continue
    word=${current%"${current##*$i}"}
    ((${#word} > ${#kept})) && kept=$word
  done
  COMPREPLY=()
  while IFS=$'\t' read -r found _; do
    COMPREPLY+=("${found#"$kept"}")
  done < <("${words[0]/#\~/$HOME}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -o bashdefault -o default -F _strata strata
`

const zshCompletion = `#compdef strata
# Completion of strata for zsh: source <(strata completion zsh), or this file as _strata in a folder of $fpath.
_strata() {
  local -a found
  local line
  for line in "${(@f)$("${words[1]/#\~/$HOME}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
    [[ -n $line ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
  done
  if (( $#found )); then
    _describe strata found
  else
    _files
  fi
}
if [[ $funcstack[1] == _strata ]]; then
  _strata "$@"
else
  compdef _strata strata
fi
`

const fishCompletion = `# Completion of strata for fish: strata completion fish > ~/.config/fish/completions/strata.fish
function __strata_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] __complete $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c strata -e
complete -c strata -f -k -a '(__strata_complete)'
`

const pwshCompletion = `# Completion of strata for PowerShell: strata completion pwsh | Out-String | Invoke-Expression
Register-ArgumentCompleter -Native -CommandName strata -ScriptBlock {
    param($current, $line, $position)
    $words = @($line.CommandElements | Select-Object -Skip 1 |
        Where-Object { $_.Extent.EndOffset -lt $position } | ForEach-Object { $_.ToString() })
    $last = if ($current) { $current } else { '""' }
    & $line.CommandElements[0].ToString() __complete @words $last 2>$null | ForEach-Object {
        $word, $about = $_ -split [char]9, 2
        if (-not $about) { $about = $word }
        [System.Management.Automation.CompletionResult]::new($word, $word, 'ParameterValue', $about)
    }
}
`

// completionCommands is the command that prints the scripts.
func completionCommands(*env) []*cli.Command {
	top := &cli.Command{
		Name: "completion", Usage: "print the completion script of a shell: bash, zsh, fish or pwsh",
		Description: "The Tab key then completes commands, flags, and the names of VMs, containers and images. Names with\n" +
			"characters that mean something to a shell are not offered.\n\n" +
			examples("source <(strata completion bash)   # in ~/.bashrc", "source <(strata completion zsh)    # in ~/.zshrc",
				"strata completion fish > ~/.config/fish/completions/strata.fish",
				"strata completion pwsh | Out-String | Invoke-Expression   # in $PROFILE"),
	}
	for _, shell := range []struct{ name, script string }{
		{"bash", bashCompletion}, {"zsh", zshCompletion}, {"fish", fishCompletion}, {"pwsh", pwshCompletion},
	} {
		top.Commands = append(top.Commands, &cli.Command{
			Name: shell.name, Usage: "print the script for " + shell.name,
			Action: func(_ context.Context, cmd *cli.Command) error {
				_, err := fmt.Fprint(cmd.Root().Writer, shell.script)
				return err
			},
		})
	}
	return []*cli.Command{top}
}
