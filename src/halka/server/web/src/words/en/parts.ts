export default {
  close: "Close",
  copy: "Copy",
  copied: "Copied",
  copyFailed: "The browser did not allow copying: select the text instead.",
  terminal: "The same in a terminal",
  tryAgain: "Try again",
  cancel: "Cancel",
  chartValues: "The values as a table",
  leaveOut: "Leave {name} out",
  none: "none",
};
