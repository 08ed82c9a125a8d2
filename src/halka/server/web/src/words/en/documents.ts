export default {
  title: "Documents",
  lead: "Collections that answers come from, and what a question finds in them.",
  empty: "There are no collections yet",
  emptyHint: "Make one and add documents: text, Markdown, HTML, PDF.",
};
