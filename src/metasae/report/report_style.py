"""The style sheet of the report: light and dark, readable on a phone and in print."""

STYLE = """
:root { --page: #fbfbfa; --card: #fff; --ink: #1d1f22; --soft: #62676e; --line: #e2e3e1; --good: #00694c; --bad: #a63d00; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171a; --card: #1d2024; --ink: #e8e8e5; --soft: #9da3ab; --line: #33373d; --good: #56c9a3; --bad: #ff9d66; --accent: #6bb8ea; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
.kind { margin: 0; color: var(--accent); font-size: .85rem; letter-spacing: .04em; }
h1 { margin: .1rem 0 1rem; font-size: 2rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .9rem; font-size: 1.2rem; }
.verdict { padding: 1rem 1.2rem; background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--accent); border-radius: 6px; }
.conditions { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
section { margin: 2.2rem 0; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; }
tbody th { font-weight: 500; }
small { display: block; color: var(--soft); font-size: .76rem; font-weight: 400; }
td.better { color: var(--good); font-weight: 600; }
td.worse { color: var(--bad); font-weight: 600; }
td.value { text-align: left; white-space: normal; overflow-wrap: anywhere; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
figcaption { margin-top: .6rem; color: var(--soft); font-size: .9rem; }
details { margin-top: .8rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
summary + .wide { margin-top: .8rem; }
dl { font-size: .9rem; }
dt { font-weight: 600; }
dd { margin: 0 0 .5rem; color: var(--soft); }
@media (max-width: 40rem) { h1 { font-size: 1.5rem; } header { padding-top: 1.4rem; } header, main { padding-left: .9rem; padding-right: .9rem; }
  th, td { padding: .45rem .55rem; } }
@media print { .wide { overflow: visible; } section { break-inside: avoid; } }
"""
