"""How the page looks, on a screen and on a phone."""

from __future__ import annotations

from ...show.html import COLOURS

STYLE = """
.compared { width: 100%; border-collapse: collapse }
#answers .compared :is(th, td) { padding: .35em .6em; text-align: left; vertical-align: top;
  border: 1px solid var(--border-color-primary) }
#answers .compared th { overflow-wrap: break-word; word-break: normal }
#answers .compared td { overflow-wrap: anywhere }
.compared caption { text-align: left; padding: 0 0 .4em; font-weight: 600; overflow-wrap: anywhere }
.compared .answer td { font-size: 1.25em; font-weight: 600 }
.message { white-space: pre-wrap; overflow-wrap: anywhere; padding: .7em 1em; border-radius: .4em;
  border: 1px solid var(--error-border-color); background: var(--error-background-fill);
  color: var(--error-text-color) }
:is(#answers, #said, #legend) .html-container { padding: 0 }
#overlays .grid-wrap { min-height: 0; max-height: none }
#overlays .grid-container { grid-template-columns: repeat(auto-fit, minmax(max(140px, 24%), 1fr)) }
.legend { display: flex; flex-wrap: wrap; gap: 0 .8em } .legend .bar { display: flex; align-items: center; gap: .5em }
.legend i { order: 1; width: 7em; height: .8em; border-radius: .2em; background: linear-gradient(90deg, COLOURS) }
.legend span:last-child { order: 2 }
.gradio-container { overflow: clip !important }
#said { position: sticky; top: .5em; bottom: .5em; z-index: 9 }
:is(#answers, #figures).stale { opacity: .65 } #answers.stale:has(table)::before { content: "The answer before:" }
.dark #entropy img { filter: invert(.9) hue-rotate(180deg) }
@media (max-width: 768px) {
  #sides { flex-flow: column nowrap } #sides > .column { display: contents } #sides > .column > * { order: 3 }
  #sides #asking { order: 1 } #sides :is(#said, #answers) { order: 2 } #sides #figures { order: 4 }
  :is(#examples, #texts) > .gallery { flex-wrap: nowrap; overflow-x: auto }
  :is(#examples, #texts) > .gallery > * { flex: none } #examples .container { width: 54px; height: 54px }
  #pictures > .block { height: 110px !important } :is(#picture label, #pictures .icon-wrap) { display: none }
  #pictures .upload-container { height: 110px !important }
  #pictures .upload-container .wrap { min-height: 0; padding-top: 2em; font-size: .8em; line-height: 1.5 }
}
""".replace("COLOURS", COLOURS)
