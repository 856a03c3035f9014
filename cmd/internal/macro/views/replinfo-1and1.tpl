# {host}: progress of fetch and replay, compact layout
%unless{%or{%work-reached{}}{%is-primary{}}{%not{%is-attach{}}}}{\
	\     replaying: %progress{20}\
	\  %sprintf{%.2f}{%work-percent{}}\%\
	\  %human-pair{%work-pos{}}{%work-size{}}\
	\  logs: [%replay-lognr{}..%work-lognr{}]\n\
	%fetch-line-1and1{}\
	%replay-line-1and1{}\
}
