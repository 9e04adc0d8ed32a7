"""The page of {{ repository }}."""

from pipeline.commands.serve import serve

serve("{{ repository }}", host="0.0.0.0", port=7860)
