<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="bids_harmony with NiReports">
<title>{{ title }}</title>
<style>
:root { --ink: #1d2733; --dim: #5b6875; --line: #dde3e8; --tint: #f4f7f9; --accent: #0b5c8f;
  --pass: #00684a; --warn: #8a5a00; --error: #a32a10; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
nav { position: sticky; top: 0; z-index: 2; background: #12293b; color: #fff; padding: .55rem 1.5rem;
  display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; align-items: baseline; }
nav b { font-weight: 650; margin-right: .6rem; }
nav a { color: #cfe3f2; text-decoration: none; font-size: .92rem; }
nav a:hover, nav a:focus { color: #fff; text-decoration: underline; }
main { max-width: 1120px; margin: 0 auto; padding: 1.2rem 1.5rem 3rem; }
h1 { font-size: 1.7rem; margin: .6rem 0 .2rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 2px solid var(--ink); }
section:first-of-type h2 { border: 0; margin-top: .6rem; padding-top: 0; }
h3 { font-size: 1.06rem; margin: 1.8rem 0 .5rem; }
h4 { margin: 0 0 .3rem; font-size: 1rem; }
a { color: var(--accent); }
code { font-size: .88em; background: var(--tint); padding: .08em .3em; border-radius: 3px; overflow-wrap: anywhere; }
.lead { font-size: 1.05rem; margin: .3rem 0 1rem; }
.caption, .small { color: var(--dim); font-size: .9rem; max-width: 60rem; margin: .4rem 0 0; }
figure { margin: 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; font-size: .94rem; }
table.wide { width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--dim); font-weight: 600; font-size: .86rem; vertical-align: bottom; }
tbody th { font-weight: 600; padding-right: 1.4rem; }
table.facts th { white-space: nowrap; color: var(--dim); font-weight: 500; }
td { overflow-wrap: break-word; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll { overflow-x: auto; } .scroll tbody > tr > :first-child { min-width: 7rem; }
tr.flagged td { background: #fdf1ec; }
.badge { display: inline-block; white-space: nowrap; min-width: 3.6rem; text-align: center; padding: .08rem .6rem; border-radius: 999px;
  font-size: .84rem; font-weight: 650; color: #fff; }
.badge.pass { background: var(--pass); } .badge.warn { background: var(--warn); } .badge.error, .badge.fail { background: var(--error); }
.note { border-left: 5px solid var(--line); background: var(--tint); padding: .7rem 1rem; margin: .8rem 0; border-radius: 0 4px 4px 0; }
.note p { margin: .3rem 0; } .note ul { margin: .2rem 0; padding-left: 1.2rem; }
.note.error { border-color: var(--error); background: #fdf1ee; }
.note.warn { border-color: #d79a16; background: #fdf7e9; }
.note.info { border-color: #7da7c4; }
.caution { display: block; color: var(--error); font-size: .84rem; font-weight: 600; }
.status { color: var(--dim); margin: .2rem 0; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { white-space: pre-wrap; font-size: .82rem; background: var(--tint); padding: .8rem; border-radius: 4px; }
ol.references li { margin-bottom: .3rem; font-size: .92rem; }
@media print {
  nav { display: none; } main { max-width: none; padding: 0; } h2 { break-before: page; }
  section:first-of-type h2 { break-before: auto; } .badge, nav, .note, tr.flagged td { print-color-adjust: exact; }
  h3, h4 { break-after: avoid; } tr { break-inside: avoid; } a { color: inherit; }
}
</style>
</head>
<body>
<nav aria-label="Sections"><b>{{ title }}</b>
{% for section in sections %}
<a href="#{{ section.name }}">{{ section.title }}</a>
{% endfor %}
</nav>
<main>
<h1>{{ title.split(": ")[-1] }}</h1>
{% for section in sections %}
<section id="{{ section.name }}">
<h2>{{ section.title }}</h2>
{% for reportlet in section.reportlets %}
<div id="{{ reportlet.name }}">
{% if reportlet.subtitle %}
<h3>{{ reportlet.subtitle }}</h3>
{% endif %}
{% for content, caption in reportlet.components %}
{{ content }}
{% if caption %}
<p class="caption">{{ caption }}</p>
{% endif %}
{% endfor %}
</div>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
